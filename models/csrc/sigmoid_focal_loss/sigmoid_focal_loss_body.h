// Arithmetic of the sigmoid focal loss, for any lane vector (no include guard: included after
// common/lanes.h for every instruction set). A lane is one logit.

namespace opus {
namespace OPUS_TARGET {
namespace focal_body {

// log(1 + exp(x)) and log(1 + exp(-x)), which differ by x.
template <typename V>
struct SoftPlus {
  V plus, minus;
};

template <typename V>
OPUS_BODY SoftPlus<V> soft_plus(const V& x) {
  const V positive = rectified(x), negative = rectified(-x);
  const V rest = log_one_plus(exponential(-(positive + negative)));  // log(1 + exp(-|x|))
  return {positive + rest, negative + rest};
}

// Loss of a logit that is not the label's: (1 - alpha) sigmoid(x)^gamma softplus(x). For the label,
// the factor is alpha and x is negated: plus and minus are swapped.
template <typename V, typename T>
OPUS_BODY V focal_term(const V& plus, const V& minus, T gamma, T factor) {
  return exponential(minus * Lanes<V>::fill(-gamma)) * plus * Lanes<V>::fill(factor);
}

// Its derivative by x: factor sigmoid(x)^gamma (gamma sigmoid(-x) softplus(x) + sigmoid(x)).
template <typename V, typename T>
OPUS_BODY V focal_slope(const V& plus, const V& minus, T gamma, T factor) {
  const V sigmoid = exponential(-minus), other = exponential(-plus);
  const V power = exponential(minus * Lanes<V>::fill(-gamma));
  return power * fmadd(other * Lanes<V>::fill(gamma), plus, sigmoid) * Lanes<V>::fill(factor);
}

}  // namespace focal_body
}  // namespace OPUS_TARGET
}  // namespace opus
