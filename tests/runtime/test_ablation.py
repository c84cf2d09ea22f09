"""Ablations: files, runs, results and the final table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.toy_runs import ablation
from scripts.toy_runs.ablation_spec import Spec, config_text, read_spec, training_overrides
from scripts.toy_runs.steps import StepFailed, Steps

ROOT = Path(__file__).resolve().parents[2]
TOY = "configs/toy/opusv2-nano_toy.py"
TEXT = f"""
config: {TOY}
seeds: [3, 4]
iterations: 100
all:
  train_dataloader.dataset.scenes: ':-2'
  val_dataloader: {{dataset: {{split: train, scenes: '-2:'}}}}
rows:
  base:
  straight: {{model.pts_bbox_head.decoder.level_pairing: straight}}
  "more, longer":
    model: {{pts_bbox_head: {{num_query: 300}}}}
    model.pts_bbox_head.score_thr: 0.3
"""


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def test_rows_become_configs(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path))
    assert spec.base == "base" and spec.seeds == (3, 4) and spec.config == ROOT / TOY
    configs = {}
    for row in spec.rows:
        path = tmp_path / "config.py"
        path.write_text(config_text(spec.config, training_overrides(spec, row, 4)))
        configs[row] = load_config(path)
    for cfg in configs.values():
        assert cfg.randomness.seed == 4
        assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == 100
        assert "IterTrainLoop" in cfg.train_cfg.type
        assert cfg.train_dataloader.dataset.scenes == ":-2"
        assert cfg.test_dataloader.dataset.scenes == "-2:"
        assert cfg.test_dataloader.dataset.split == "train"
    heads = {row: cfg.model.pts_bbox_head for row, cfg in configs.items()}
    assert heads["base"].decoder.level_pairing == "published"
    assert heads["straight"].decoder.level_pairing == "straight"
    assert heads["more, longer"].num_query == 300 and heads["more, longer"].score_thr == 0.3


def test_short_trainings_log_every_iteration(tmp_path: Path) -> None:
    intervals = {"": 1, "  default_hooks.logger.interval: 2\n": 2}
    for line, interval in intervals.items():
        text = TEXT.replace("iterations: 100", "iterations: 4").replace("all:\n", f"all:\n{line}")
        spec = read_spec(write(tmp_path, text))
        path = tmp_path / "config.py"
        path.write_text(config_text(spec.config, training_overrides(spec, "base", 0)))
        assert load_config(path).default_hooks.logger.interval == interval


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config: [", "cannot be read as YAML"),
        ("- a", "has no keys"),
        (TEXT + "colour: red\n", "has the unknown key 'colour'"),
        (f"config: {TOY}\n", "lacks `rows`"),
        (TEXT.replace(TOY, "configs/none.py"), r"configs/none.py does not exist"),
        (TEXT.replace("[3, 4]", "[3, 3]"), "one number twice"),
        (TEXT.replace("[3, 4]", "three"), "seeds is 'three'"),
        (TEXT.replace("iterations: 100", "iterations: 0"), "iterations is 0"),
        (TEXT.replace("iterations: 100", "equal_time: true"), "equal_time needs iterations"),
        (TEXT.replace("  base:\n", "  base: 3\n"), "rows.base is 3"),
        (TEXT.replace("straight: {", "Base: {"), "must differ in their letters"),
        (TEXT.replace("  base:\n", "  base: {'a b': 3}\n"), "the key 'a b', which no config"),
        (TEXT + "scores: mIoU\n", "scores is 'mIoU'"),
        (TEXT + "scores: []\n", r"scores is \[\]"),
        (TEXT + "data: [toy]\n", r"data is \['toy'\]"),
        (TEXT + "equal_time: sometimes\n", "equal_time is 'sometimes'"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        read_spec(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_the_shipped_files_make_configs(tmp_path: Path) -> None:
    files = sorted((ROOT / "configs/ablations").glob("*.yaml"))
    assert files
    for file in files:
        spec = read_spec(file)
        for row in spec.rows:
            path = tmp_path / "config.py"
            path.write_text(config_text(spec.config, training_overrides(spec, row, 0)))
            load_config(path)


class Machine:
    """Replace trainings and evaluations: write the same files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "", code: int = 1) -> None:
        self.trained: list[str] = []
        self.scored: list[str] = []
        self.fails, self.code = fails, code
        monkeypatch.setattr(ablation, "train_model", self.train)
        monkeypatch.setattr(ablation, "score_model", self.score)

    def train(self, steps: Steps, config: str, work_dir: Path, data_key: str) -> Path:
        weights = work_dir / "last.pth"
        name = str(work_dir.relative_to(work_dir.parents[1]))
        if weights.is_file():
            return weights
        if self.fails and self.fails in name:
            raise StepFailed(f"step 'training' failed with exit code {self.code}")
        self.trained.append(str(work_dir))
        work_dir.mkdir(parents=True, exist_ok=True)
        (work_dir / Path(config).name).write_text("as MMEngine writes it")
        log = work_dir / "20260101" / "vis_data" / "scalars.json"
        log.parent.mkdir(parents=True)
        seconds = 0.5 if "slow" in str(work_dir) else 0.25
        lines = [dict(loss=1.0, time=seconds, host_memory=900.0 + i) for i in (1, 2)]
        log.write_text("\n".join(map(json.dumps, lines)) + '\n{"loss": 1.0, "ti')  # killed
        length = re.search(r"'max_iters': (\d+)", Path(config).read_text())
        meta = {"iter": int(length[1]) if length else 2560}
        torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": meta}, weights)
        return weights

    def score(self, steps: Steps, config: str, weights: Path, work_dir: Path) -> Path:
        self.scored.append(config)
        seed = int(str(weights.parent)[-1])
        gain = 2.0 + seed if "slow" in config else 0.0
        metrics = {"occ3d/mIoU": 10.0 + seed + gain, "ray/RayIoU": 5.0}
        out = work_dir / "scores.json"
        out.write_text(json.dumps(dict(metrics=metrics, seconds=8.0, num_samples=16)))
        return out


def spec_of(**changes: Any) -> Spec:
    rows: dict[str, Any] = {"base": {}, "slow": {"max_epochs": 2}}
    return Spec(**{"name": "x", "config": ROOT / TOY, "rows": rows, "seeds": (1, 2), **changes})


def test_table_numbers_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    ablation.run_ablation(spec_of(iterations=100, equal_time=True), tmp_path)
    numbers = json.loads((tmp_path / "ablation.json").read_text())
    assert numbers["slow"]["scores"]["occ3d/mIoU"] == {"1": 14.0, "2": 16.0}
    table = (tmp_path / "ablation.md").read_text().splitlines()
    rows = [line for line in table if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][:7] == ["base", "2", "100", "11.50 ± 0.71", "", "5.00 ± 0.00", ""]
    assert cells[0][7:] == ["0.250", "902", "0.500"]
    # Differences seed by seed: 3 and 4.
    assert cells[1][:5] == ["slow", "2", "100", "15.00 ± 1.41", "+3.50 ± 0.71"]
    assert cells[2][0] == "slow, equal time" and cells[2][4] == "+3.50 ± 0.71"
    equal = (tmp_path / "slow" / "equal-time" / "seed1.py").read_text()
    assert "'max_iters': 50" in equal  # half as many steps as the base, twice as slow
    assert cells[2][2] == "50"
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert len(machine.trained) == 6


def test_a_single_seed_has_no_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    ablation.run_ablation(spec_of(seeds=(1,)), tmp_path)
    last = (tmp_path / "ablation.md").read_text().splitlines()[-1]
    assert last.startswith("| slow | 1 | 2560 | 14.00 | +3.00 | 5.00 | +0.00 |")


def test_every_model_is_scored_under_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    thresholds = {t: {"model": {"pts_bbox_head": {"score_thr": float(t)}}} for t in ("0.3", "0.4")}
    ablation.run_ablation(spec_of(rows={"base": {}}, evaluations=thresholds), tmp_path)
    assert len(machine.trained) == 2 and len(machine.scored) == 4
    assert "'score_thr': 0.4" in Path(machine.scored[1]).read_text()
    assert list(json.loads((tmp_path / "ablation.json").read_text())) == ["base, 0.3", "base, 0.4"]


def test_a_failed_row_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, fails="base/seed1")
    with pytest.raises(StepFailed, match="base, seed 1: step 'training' failed"):
        ablation.run_ablation(spec_of(), tmp_path)
    assert len(machine.trained) == 3
    assert len(json.loads((tmp_path / "ablation.json").read_text())["base"]["scores"]) == 2
    again = Machine(monkeypatch)
    ablation.run_ablation(spec_of(), tmp_path)
    assert [Path(folder).parts[-2:] for folder in again.trained] == [("base", "seed1")]


def test_an_interruption_stops_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    arguments = [str(path), "--out", str(tmp_path / "out")]
    machine = Machine(monkeypatch, fails="straight/seed3", code=130)
    assert ablation.main(arguments) == 130
    assert "continues where it stopped" in capsys.readouterr().err
    assert len(machine.trained) == 1
    again = Machine(monkeypatch)
    assert ablation.main(arguments) == 0
    assert len(again.trained) == 5


def test_unknown_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data is 'moon': choose one of toy, pretrain"):
        ablation.run_ablation(spec_of(data="moon"), tmp_path)
