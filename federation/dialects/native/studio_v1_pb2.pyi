from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClientMessage(_message.Message):
    __slots__ = ("hello", "received", "progress", "metrics", "validation", "failure", "log", "telemetry", "attributes", "bye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    received: Received
    progress: Progress
    metrics: Metrics
    validation: Validation
    failure: Failure
    log: Log
    telemetry: Telemetry
    attributes: Attributes
    bye: Bye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., metrics: _Optional[_Union[Metrics, _Mapping]] = ..., validation: _Optional[_Union[Validation, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ..., attributes: _Optional[_Union[Attributes, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "client_version", "holds", "attributes_json", "can_validate", "takes_models")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_JSON_FIELD_NUMBER: _ClassVar[int]
    CAN_VALIDATE_FIELD_NUMBER: _ClassVar[int]
    TAKES_MODELS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client_version: str
    holds: _containers.RepeatedScalarFieldContainer[str]
    attributes_json: str
    can_validate: bool
    takes_models: bool
    def __init__(self, protocol: _Optional[int] = ..., client_version: _Optional[str] = ..., holds: _Optional[_Iterable[str]] = ..., attributes_json: _Optional[str] = ..., can_validate: _Optional[bool] = ..., takes_models: _Optional[bool] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ("assignment_id",)
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    def __init__(self, assignment_id: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("assignment_id", "fraction", "note")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    fraction: float
    note: str
    def __init__(self, assignment_id: _Optional[str] = ..., fraction: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("assignment_id", "values", "step")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    values: _containers.ScalarMap[str, float]
    step: int
    def __init__(self, assignment_id: _Optional[str] = ..., values: _Optional[_Mapping[str, float]] = ..., step: _Optional[int] = ...) -> None: ...

class Validation(_message.Message):
    __slots__ = ("assignment_id", "data_json", "num_examples")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_JSON_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    data_json: str
    num_examples: float
    def __init__(self, assignment_id: _Optional[str] = ..., data_json: _Optional[str] = ..., num_examples: _Optional[float] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("assignment_id", "reason", "exit_code", "log_tail")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    reason: str
    exit_code: int
    log_tail: str
    def __init__(self, assignment_id: _Optional[str] = ..., reason: _Optional[str] = ..., exit_code: _Optional[int] = ..., log_tail: _Optional[str] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("assignment_id", "level", "text")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    level: str
    text: str
    def __init__(self, assignment_id: _Optional[str] = ..., level: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Telemetry(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, float]
    def __init__(self, values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Attributes(_message.Message):
    __slots__ = ("attributes_json",)
    ATTRIBUTES_JSON_FIELD_NUMBER: _ClassVar[int]
    attributes_json: str
    def __init__(self, attributes_json: _Optional[str] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("welcome", "task", "cancel", "ack", "goodbye")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    task: Task
    cancel: Cancel
    ack: Ack
    goodbye: Goodbye
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "server_version", "combiner", "client_id", "client_name", "upload_forms", "lane")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMBINER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FORMS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    server_version: str
    combiner: str
    client_id: str
    client_name: str
    upload_forms: _containers.RepeatedScalarFieldContainer[str]
    lane: str
    def __init__(self, protocol: _Optional[int] = ..., server_version: _Optional[str] = ..., combiner: _Optional[str] = ..., client_id: _Optional[str] = ..., client_name: _Optional[str] = ..., upload_forms: _Optional[_Iterable[str]] = ..., lane: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("assignment_id", "kind", "session_id", "session_name", "round", "model_id", "model_sha256", "model_size", "package_id", "package_sha256", "settings_json", "deadline_unix_s", "compression", "model")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_NAME_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_ID_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    kind: str
    session_id: str
    session_name: str
    round: int
    model_id: str
    model_sha256: str
    model_size: int
    package_id: str
    package_sha256: str
    settings_json: str
    deadline_unix_s: float
    compression: str
    model: bytes
    def __init__(self, assignment_id: _Optional[str] = ..., kind: _Optional[str] = ..., session_id: _Optional[str] = ..., session_name: _Optional[str] = ..., round: _Optional[int] = ..., model_id: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_size: _Optional[int] = ..., package_id: _Optional[str] = ..., package_sha256: _Optional[str] = ..., settings_json: _Optional[str] = ..., deadline_unix_s: _Optional[float] = ..., compression: _Optional[str] = ..., model: _Optional[bytes] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("assignment_id", "reason")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    reason: str
    def __init__(self, assignment_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("assignment_id", "status", "reason")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    status: str
    reason: str
    def __init__(self, assignment_id: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("code", "reason", "retry")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    retry: bool
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ..., retry: _Optional[bool] = ...) -> None: ...

class UploadStatusRequest(_message.Message):
    __slots__ = ("assignment_id", "upload_id", "size")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    upload_id: str
    size: int
    def __init__(self, assignment_id: _Optional[str] = ..., upload_id: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class UploadStatusReply(_message.Message):
    __slots__ = ("offset", "receipt")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    offset: int
    receipt: Receipt
    def __init__(self, offset: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class UploadChunk(_message.Message):
    __slots__ = ("head", "data", "tail")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    head: UploadHead
    data: bytes
    tail: UploadTail
    def __init__(self, head: _Optional[_Union[UploadHead, _Mapping]] = ..., data: _Optional[bytes] = ..., tail: _Optional[_Union[UploadTail, _Mapping]] = ...) -> None: ...

class UploadHead(_message.Message):
    __slots__ = ("assignment_id", "upload_id", "size", "offset", "form")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    upload_id: str
    size: int
    offset: int
    form: str
    def __init__(self, assignment_id: _Optional[str] = ..., upload_id: _Optional[str] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., form: _Optional[str] = ...) -> None: ...

class UploadTail(_message.Message):
    __slots__ = ("sha256", "num_examples", "metadata_json")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    num_examples: float
    metadata_json: str
    def __init__(self, sha256: _Optional[str] = ..., num_examples: _Optional[float] = ..., metadata_json: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("status", "reason")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Receipt.Status]
        ACCEPTED: _ClassVar[Receipt.Status]
        REJECTED: _ClassVar[Receipt.Status]
        REFUSED: _ClassVar[Receipt.Status]
    STATUS_UNSPECIFIED: Receipt.Status
    ACCEPTED: Receipt.Status
    REJECTED: Receipt.Status
    REFUSED: Receipt.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: Receipt.Status
    reason: str
    def __init__(self, status: _Optional[_Union[Receipt.Status, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class UploadStart(_message.Message):
    __slots__ = ("head", "tail")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    head: UploadHead
    tail: UploadTail
    def __init__(self, head: _Optional[_Union[UploadHead, _Mapping]] = ..., tail: _Optional[_Union[UploadTail, _Mapping]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("assignment_id", "model_id", "offset")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    assignment_id: str
    model_id: str
    offset: int
    def __init__(self, assignment_id: _Optional[str] = ..., model_id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadChunk(_message.Message):
    __slots__ = ("offset", "size", "data", "sha256")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size: int
    data: bytes
    sha256: str
    def __init__(self, offset: _Optional[int] = ..., size: _Optional[int] = ..., data: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...
