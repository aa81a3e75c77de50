"""The fields of Triton's ModelConfig that are in use, as a protobuf descriptor: names, numbers and types as published.

Source: triton-inference-server/common, protobuf/model_config.proto (syntax proto3, package inference).
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_FIELD = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _FIELD.TYPE_STRING,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
    "bool": _FIELD.TYPE_BOOL,
}
_ENUMS = {
    "DataType": {
        "TYPE_INVALID": 0,
        "TYPE_BOOL": 1,
        "TYPE_UINT8": 2,
        "TYPE_INT8": 6,
        "TYPE_INT32": 8,
        "TYPE_INT64": 9,
        "TYPE_FP16": 10,
        "TYPE_FP32": 11,
        "TYPE_FP64": 12,
        "TYPE_STRING": 13,
        "TYPE_BF16": 14,
    },
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
# message -> field -> (number, type); "*" repeated, "{}" map from string
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ModelInstanceGroup": {"name": (1, "string"), "count": (2, "int32"), "gpus": (3, "int32*"), "kind": (4, "Kind")},
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "int64*")},
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "label_filename": (4, "string"),
    },
    "Latest": {"num_versions": (1, "uint32")},
    "ModelVersionPolicy": {"latest": (1, "Latest")},
    "Cuda": {"graphs": (1, "bool")},
    "Accelerator": {"name": (1, "string"), "parameters": (2, "string{}")},
    "ExecutionAccelerators": {
        "gpu_execution_accelerator": (1, "Accelerator*"),
        "cpu_execution_accelerator": (2, "Accelerator*"),
    },
    "ModelOptimizationPolicy": {"cuda": (3, "Cuda"), "execution_accelerators": (4, "ExecutionAccelerators")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, "int32*"), "max_queue_delay_microseconds": (2, "uint64")},
    "Step": {
        "model_name": (1, "string"),
        "model_version": (2, "int64"),
        "input_map": (3, "string{}"),
        "output_map": (4, "string{}"),
    },
    "ModelEnsembling": {"step": (1, "Step*")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "version_policy": (3, "ModelVersionPolicy"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "default_model_filename": (8, "string"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "optimization": (12, "ModelOptimizationPolicy"),
        "parameters": (14, "ModelParameter{}"),
        "ensemble_scheduling": (15, "ModelEnsembling"),
        "backend": (17, "string"),
    },
}


def parse_config(text: str) -> Any:
    """Parse a config.pbtxt as Triton does; raises google.protobuf.text_format.ParseError."""
    return text_format.Parse(text, _message_class()())


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for word, number in values.items():
            enum.value.add(name=word, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, name, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def _add_field(message: Any, owner: str, name: str, number: int, kind: str) -> None:
    repeated = kind.endswith(("*", "{}"))
    made = message.field.add(
        name=name, number=number, label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    )
    base = kind.removesuffix("*").removesuffix("{}")
    if kind.endswith("{}"):
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for index, (part, of) in enumerate((("key", "string"), ("value", base)), start=1):
            _add_field(entry, owner, part, index, of)
        made.type, made.type_name = _FIELD.TYPE_MESSAGE, f".inference.{owner}.{entry.name}"
    elif base in _KINDS:
        made.type = _KINDS[base]
    else:
        made.type = _FIELD.TYPE_ENUM if base in _ENUMS else _FIELD.TYPE_MESSAGE
        made.type_name = f".inference.{base}"
