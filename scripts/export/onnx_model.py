"""Translate the functions of a model into ONNX graphs of standard operators."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from models.errors import MissingPackageError
from scripts.export.functions import Function, traced, without_warnings_of_torch
from scripts.export.interface import lidar_facts
from scripts.export.source import Source
from scripts.export.standard_operations import standard_operations
from scripts.runtime.atomic_write import write_atomically

LOWEST_OPSET = 18  # the first whose ScatterElements takes a maximum
# Loggers that report folded constants and operations that this project does not use.
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def to_onnx(source: Source, function: Function, opset: int = LOWEST_OPSET) -> Any:
    """Translate a function.

    Args:
        source: The model, for the metadata.
        function: One of `functions_of`, with stacked maps.
        opset: Version of ONNX's operators, from `LOWEST_OPSET`.

    Returns:
        The `onnx.ModelProto`.

    Raises:
        MissingPackageError: ONNX's packages are not installed.
    """
    _check_packages()
    with torch.no_grad(), _quiet():
        with standard_operations():
            exported = traced(function)
        program = torch.onnx.export(
            exported,
            (),
            input_names=[port.name for port in function.inputs],
            output_names=[port.name for port in function.outputs],
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _describe(model, source, function)
    domains = {entry.domain for entry in model.opset_import}
    assert domains <= {""} and not model.functions, f"operators of other domains: {domains}"
    return model


def save_onnx(model: Any, path: Path) -> Path:
    """Write a model in one step."""
    import onnx

    return write_atomically(path, lambda temporary: onnx.save(model, temporary))


def _check_packages() -> None:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX export needs the package {error.name}, which is not installed: "
            "pip install -r requirements/onnx.txt"
        ) from error
    assert onnx and onnxscript


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log messages and the warning of the exporter."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_warnings_of_torch():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(model: Any, source: Source, function: Function) -> None:
    """Write names, meanings and metadata into a model, and remove paths of this machine."""
    _strip(model.graph)
    _cast_non_zero(model.graph)
    ends = [*zip(model.graph.input, function.inputs, strict=True)]
    ends += zip(model.graph.output, function.outputs, strict=True)
    for value, port in ends:
        value.doc_string = port.meaning
        for dim, size in zip(value.type.tensor_type.shape.dim, port.shape, strict=True):
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    model.producer_name = "opus-occupancy"
    model.doc_string = (
        f"Occupancy prediction, {source.config or 'a model'}{function.suffix}: docs/deployment.md"
    )
    del model.metadata_props[:]
    for key, value in (source.facts() | lidar_facts(source)).items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)


def _cast_non_zero(graph: Any) -> None:
    """Cast the inputs of `NonZero` to float32: TensorRT documents only float32 and float16."""
    import onnx

    nodes = []
    for node in graph.node:
        if node.op_type == "NonZero":
            name = f"{node.output[0]}_as_numbers"
            nodes.append(
                onnx.helper.make_node("Cast", [node.input[0]], [name], to=onnx.TensorProto.FLOAT)
            )
            node.input[0] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _strip(graph: Any) -> None:
    """Remove the call traces, which hold paths, from every node."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
