from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.toy_runs import demo, model_steps
from scripts.toy_runs import steps as toy_steps
from tests.runtime.test_parent_process import is_running

COUNT = "import sys; f = open(sys.argv[1], 'a'); f.write('x')"


def test_a_step_is_run_once_for_each_key(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["-c", COUNT, str(out)]
    for key, runs in (("a", 1), ("a", 1), ("b", 2)):
        steps = toy_steps.Steps.load(tmp_path / "steps.json")
        steps.run("count", command, key, [out])
        assert len(out.read_text()) == runs
    out.unlink()
    assert toy_steps.Steps.load(tmp_path / "steps.json").run("count", command, "b", [out])


MEASURE = """
import sys
from scripts.toy_runs import steps
step = "import time; x = bytearray(200_000_000); time.sleep(0.2)"
print(*steps.measure([sys.executable, "-c", step]))
"""


def test_a_step_is_measured() -> None:
    # In a process as small as the real one: see toy_steps.config_key.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=toy_steps.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, memory_mb, exit_code = map(float, done.stdout.split())
    assert exit_code == 0
    assert seconds >= 0.2
    assert 200 <= memory_mb < 250


STRUCK = """
import os, signal, sys, threading
from pathlib import Path
from scripts.toy_runs import steps
step = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
told = Path(sys.argv[1])
def strike():
    while not told.is_file() or not told.read_text():
        pass
    os.kill(os.getpid(), int(sys.argv[2]))
threading.Thread(target=strike, daemon=True).start()
try:
    steps.measure([sys.executable, "-c", step, str(told)])
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_step_ends_with_its_command(tmp_path: Path, number: signal.Signals) -> None:
    told = tmp_path / "pid"
    done = subprocess.run(
        [sys.executable, "-c", STRUCK, str(told), str(int(number))],
        cwd=toy_steps.ROOT, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    if number == signal.SIGTERM:  # waits for the step
        assert (done.returncode, done.stdout) == (0, "interrupted\n")
        with pytest.raises(ProcessLookupError):
            os.kill(int(told.read_text()), 0)
    deadline = time.monotonic() + 50
    while is_running(int(told.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_key_of_a_config_is_that_of_its_content(tmp_path: Path) -> None:
    base, child = tmp_path / "base.py", tmp_path / "child.py"
    child.write_text("_base_ = ['./base.py']\nlog_level = 'INFO'\n")
    keys = []
    for text in ("resume = 1\n", "resume = 1  # the same\n", "resume = 3\n"):
        base.write_text(text)
        keys.append(toy_steps.config_key(str(child)))
    assert keys[0] == keys[1] != keys[2]
    child.write_text("_base_ = ['./none.py']\n")
    with pytest.raises(ValueError, match=r"child.py cannot be read: .*none.py"):
        toy_steps.config_key(str(child))


def test_a_failed_step_is_not_remembered(tmp_path: Path) -> None:
    steps = toy_steps.Steps.load(tmp_path / "steps.json")
    with pytest.raises(toy_steps.StepFailed, match="step 'x' failed with exit code 3"):
        steps.run("x", ["-c", "raise SystemExit(3)"], "a", [])
    with pytest.raises(toy_steps.StepFailed, match="did not write"):
        steps.run("x", ["-c", "pass"], "a", [tmp_path / "none"])
    assert toy_steps.Steps.load(tmp_path / "steps.json").records == {}


def write_scores(path: Path, miou: float, ray_iou: float) -> Path:
    content = {"metrics": {"occ3d/mIoU": miou, "ray/RayIoU": ray_iou}}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("model", "factors", "complaint"),
    [
        ((12.0, 16.0), demo.DEMO_FACTORS, None),
        ((12.0, 16.0), demo.LONG_FACTORS, None),
        ((12.0, 14.9), demo.LONG_FACTORS, "RayIoU is 1.49 times the prior's, wanted 1.5"),
        ((10.0, 16.0), demo.DEMO_FACTORS, "mIoU is 1.00 times"),
        ((9.0, 9.0), demo.DEMO_FACTORS, "mIoU is 0.90 times .* RayIoU is 0.90 times"),
    ],
)
def test_the_model_must_beat_the_prior(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: tuple[float, float],
    factors: tuple[float, float],
    complaint: str | None,
) -> None:
    scores = write_scores(tmp_path / "metrics.json", *model)
    prior = write_scores(tmp_path / "prior.json", 10.0, 10.0)
    costs = {"training": toy_steps.Record("a", 61.4, 512.0)}
    if complaint is None:
        demo.report(costs, scores, prior, tmp_path, factors)
    else:
        with pytest.raises(toy_steps.StepFailed, match=complaint):
            demo.report(costs, scores, prior, tmp_path, factors)
    table = capsys.readouterr().out
    assert "| training | 61 s | 512 MB |" in table
    assert f"| RayIoU | 10.00 | **{model[1]:.2f}** |" in table


def test_a_missing_score_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"metrics": {}}')
    prior = write_scores(tmp_path / "prior.json", 1.0, 1.0)
    with pytest.raises(ValueError, match=r"metrics.json has no score 'occ3d/mIoU'"):
        demo.report({}, tmp_path / "metrics.json", prior, tmp_path, demo.DEMO_FACTORS)


def test_missing_config_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--config", "configs/toy/none.py"]) == 2
    assert "config configs/toy/none.py does not exist" in capsys.readouterr().err


def test_other_data_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training depends on the key of the data, which differs for tables and info files."""
    root = tmp_path / "toy"
    content = {
        root / "toy_nuscenes.json": "options",
        root / "v1.0-mini" / "sample.json": "samples",
        root / "nuscenes_infos_train_mini_sweep.pkl": "train",
        root / "nuscenes_infos_val_mini_sweep.pkl": "val",
    }
    commands: list[str] = []

    def write(
        self: toy_steps.Steps, name: str, command: list[str], key: str, outputs: object
    ) -> bool:
        commands.append(f"{name} {key}")
        for path, text in content.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return True

    monkeypatch.setattr(toy_steps.Steps, "run", write)
    data = model_steps.ToyData(root)
    first = model_steps.make_data(data)
    assert model_steps.make_data(data) == first
    assert commands[:2] == commands[2:]
    keys = {first}
    for path in content:
        content[path] += " changed"
        keys.add(model_steps.make_data(data))
    assert len(keys) == 1 + len(content)
    # The info files are made again where the tables have changed, but not for their own sake.
    info_steps = commands[1::2]
    assert len(set(info_steps)) == 3
