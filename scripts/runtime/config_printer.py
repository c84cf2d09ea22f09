"""Print the resolved config: files and command-line options merged, every part with its values.

    python scripts/print_config.py CONFIG [--cfg-options KEY=VALUE ...] > whole.py

The output is a valid config for MMEngine and the entry points. A comment lists the origin of each
shared value and the parts that read it. The exit code is 2 if train.py would reject the config.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS, init_default_scope

from scripts.runtime.building import named_config_keys
from scripts.runtime.command_line import CommandParser, add_config_arguments, run_command
from scripts.runtime.config import LoadedConfig, load
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from scripts.runtime.parts import LOADERS, arguments_of, find_type
from scripts.runtime.preflight import check_evaluation
from scripts.runtime.settings import leaf_datasets


def print_config(path: str, options: dict[str, object]) -> str:
    """Return the text of a resolved config.

    Raises:
        ConfigError: The config cannot be used for training.
    """
    loaded = load(path, options)
    check_buildable(loaded.cfg)
    return f"{header(path, loaded)}\n{loaded.cfg.pretty_text}"


def header(path: str, loaded: LoadedConfig) -> str:
    """Return the comment with the origin and the readers of every shared value."""
    lines = [f"# {path}, resolved.", "#"]
    for name, setting in loaded.settings.items():
        source = loaded.sources.get(name, "?")
        if setting.is_effective:
            readers = ", ".join(setting.readers) or "written in the parts"
            lines.append(f"# {name}: from {source}; read by {readers}")
        else:
            lines.append(f"# {name}: from {source}; not read by any part of this config, left out")
    return "\n".join(lines)


def check_buildable(cfg: Config) -> None:
    """Build the model, the data sets without their data, and the metrics, as train.py does.

    Raises:
        ConfigError: The model rejects its settings, or the batch size is invalid.
    """
    check_evaluation(cfg)
    fitted = Config(cfg.to_dict())
    fit_config(fitted, Launch(), trains=fitted.get("train_dataloader") is not None)
    init_default_scope(fitted.get("default_scope", "mmengine"))
    with named_config_keys(fitted):
        MODELS.build(fitted.model)
        for name in LOADERS:
            for _, dataset in leaf_datasets((fitted.get(name) or {}).get("dataset"), name):
                if "lazy_init" in arguments_of(find_type(dataset["type"], DATASETS)).names:
                    DATASETS.build({**dataset, "lazy_init": True})
        for name in ("val_evaluator", "test_evaluator"):
            if fitted.get(name) is not None:
                Evaluator(fitted[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)

    def run(args: argparse.Namespace) -> None:
        # Messages that parts print or log while they are built go to standard error.
        with contextlib.redirect_stdout(sys.stderr):
            text = print_config(args.config, args.cfg_options)
        print(text)

    return run_command(parser, run, arguments)
