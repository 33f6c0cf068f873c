"""Who is measured: each peer is one object that makes of the shared weights something to call.

A new peer is a class with `name`, `family` ("transformers", "exported" or "ours"), `type_in(case)` (the type whose
matrix rate it is held against) and `inference(network, case)`, which returns a function from (B, N) samples to
(B, T, V) logits; it goes into `PEERS`. What cannot be done here raises `Absent` with the reason.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, cast

import torch
from measuring import reason
from networks import HEADS, Case, Network
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.compute_types import convert

OURS = {"ctc": Wav2Vec2ConformerForCTC, "pretraining": Wav2Vec2ConformerForPreTraining}
Call = Callable[..., Tensor]


class Absent(Exception):  # noqa: N818  (nothing went wrong)
    """A peer cannot run here, or not this case; the message says why."""


class Peer(Protocol):
    """What is measured."""

    name: str
    family: str

    def type_in(self, case: Case) -> str:
        """The type that it computes its products in: "float32", "bfloat16", "float16" or "int8"."""

    def inference(self, network: Network, case: Case) -> Call:
        """Samples -> logits."""


@dataclass(frozen=True)
class TorchPeer:
    """A network of transformers or of this package, as torch runs it.

    Args:
        name: of the peer.
        family: "transformers" or "ours".
        attention: transformers' implementation; None: the default.
        compiled: whether `torch.compile` makes it faster.
        dtype: another type than the case's.
    """

    name: str
    family: str
    attention: str | None = None
    compiled: bool = False
    dtype: str | None = None

    def type_in(self, case: Case) -> str:
        return self.dtype or case.dtype

    def check_type(self, case: Case) -> None:
        """Raise `Absent` where another peer is the same."""
        if self.dtype == case.dtype:
            raise Absent(f"in {case.dtype} the same as `ours`")

    def new(self, network: Network) -> Any:
        """The module with random weights."""
        if self.family == "ours":
            return OURS[network.head](Wav2Vec2ConformerConfig(**network.fields))
        return HEADS[network.head](network.config)

    def build(self, network: Network) -> Any:
        """The module in float32 on the CPU, with the shared weights themselves and not a copy of them."""
        with no_init_weights():
            model = self.new(network)
        model.load_state_dict(network.state, assign=True)
        if self.attention:
            model.set_attn_implementation(self.attention)
        return model

    def inference_module(self, network: Network, case: Case, *, dynamic: bool = False) -> nn.Module:
        """The module in evaluation mode, of its type, on the case's device; `dynamic`: for many lengths."""
        kind = self.type_in(case)
        self.check_type(case)
        if kind == "int8" and case.device != "cpu":
            raise Absent("int8 runs on a CPU only")
        model = self.build(network).eval().to(case.device)
        if self.family == "ours":
            convert(model, kind)
        else:
            model.to(getattr(torch, kind))
        return self.maybe_compiled(model, dynamic=dynamic)

    def maybe_compiled(self, model: nn.Module, *, dynamic: bool | None) -> nn.Module:
        """The module, its forward pass compiled if that is what this peer is about; None: torch finds out."""
        if self.compiled:
            model.compile(dynamic=dynamic)
        return model

    def inference(self, network: Network, case: Case) -> Call:
        return self.logits_of(self.inference_module(network, case))

    @staticmethod
    def logits_of(model: Any) -> Call:
        """The module as a function, with or without an attention mask."""
        dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        return lambda values, *mask: model(values.to(dtype), *mask).logits

    def check_training(self, case: Case) -> None:
        """Raise `Absent` where this peer does not train."""
        self.check_type(case)
        if self.type_in(case) not in ("float32", "bfloat16"):
            raise Absent(f"no training in {self.type_in(case)} here: it needs a loss scaler, or there are no gradients")

    def training_module(self, network: Network, case: Case) -> nn.Module:
        """The module in training mode on the case's device: float32, new random weights of its own."""
        self.check_training(case)
        torch.manual_seed(0)
        model = self.new(network)
        if self.attention:
            model.set_attn_implementation(self.attention)
        # The number of masked frames is another one in each step.
        return self.maybe_compiled(model.to(case.device).train(), dynamic=None)


class Logits(nn.Module):
    """What is exported of transformers' model: samples -> logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model: Any = TorchPeer("exported", "transformers").build(network).eval()

    def forward(self, values: Tensor) -> Tensor:
        positions = self.model.wav2vec2_conformer.encoder.embed_positions
        if hasattr(positions, "cached_sequence_length"):  # the second of two tracings would differ from the first
            positions.cached_sequence_length = None
        return cast(Tensor, self.model(values).logits)


class ExportedPeer(ABC):
    """A runtime for what it has made of transformers' model; made once a network, for any batch and length."""

    family = "exported"
    name: str
    needs: tuple[str, ...]

    @abstractmethod
    def type_in(self, case: Case) -> str:
        """See `Peer`."""

    @abstractmethod
    def export(self, network: Network, values: Tensor) -> Any:
        """Convert the model, with (B, N) samples as an example."""

    @abstractmethod
    def load(self, exported: Any, case: Case) -> Call:
        """Make what was exported ready to run."""

    def inference(self, network: Network, case: Case) -> Call:
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise Absent(f"not installed: {', '.join(missing)}")
        if case.device != "cpu":
            raise Absent("measured on CPUs only")
        if case.dtype != "float32":
            raise Absent("measured where the others compute in float32 only")
        kind = type(self).__name__
        if kind not in network.exported:
            network.exported[kind] = self._try(network)
        exported = network.exported[kind]
        if isinstance(exported, Absent):
            raise exported
        return self.load(exported, case)

    def _try(self, network: Network) -> Any:
        """The export, or why there is none."""
        try:
            with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")  # of tracing; whether it was right is told by the outputs' difference
                return self.export(network, torch.randn(2, 16_000))
        except Exception as error:
            return Absent(f"no export: {reason(error)}")


class OnnxRuntime(ExportedPeer):
    """ONNX Runtime on torch's ONNX export."""

    name = "onnxruntime"
    needs = ("onnxruntime", "onnxscript")

    def type_in(self, case: Case) -> str:
        return "float32"

    def export(self, network: Network, values: Tensor) -> str:
        shape = {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples")}
        program = torch.onnx.export(Logits(network), (values,), dynamo=True, dynamic_shapes=(shape,), verbose=False)
        path = network.folder / "model.onnx"
        program.save(path, external_data=True)
        return str(path)

    def load(self, exported: str, case: Case) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
        (values_name,) = (one.name for one in session.get_inputs())
        return lambda values: torch.from_numpy(session.run(None, {values_name: values.numpy()})[0])


class OpenVINO(ExportedPeer):
    """OpenVINO's runtime on its own conversion.

    Args:
        name: of the peer.
        kind: the type that it may compute in; left to itself it takes bfloat16 where the processor has it.
    """

    needs = ("openvino",)

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind

    def type_in(self, case: Case) -> str:
        return self.kind

    def export(self, network: Network, values: Tensor) -> Any:
        import openvino

        return openvino.convert_model(
            Logits(network), example_input=values, input=[openvino.PartialShape([-1, -1])], verbose=False
        )

    def load(self, exported: Any, case: Case) -> Call:
        import openvino

        model = exported.clone()
        if case.seconds is not None:
            model.reshape([case.batch, case.samples])
        options = {
            "INFERENCE_NUM_THREADS": case.threads,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.kind],
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.compile_model(model, "CPU", options)
        return lambda values: torch.from_numpy(compiled([values.numpy()])[0])


ALL: tuple[Peer, ...] = (
    TorchPeer("transformers-eager", "transformers", attention="eager"),
    TorchPeer("transformers-sdpa", "transformers", attention="sdpa"),
    TorchPeer("transformers-compiled", "transformers", attention="sdpa", compiled=True),
    OnnxRuntime(),
    OpenVINO("openvino", "float32"),
    OpenVINO("openvino-bfloat16", "bfloat16"),
    TorchPeer("ours", "ours"),
    TorchPeer("ours-compiled", "ours", compiled=True),
    TorchPeer("ours-bfloat16", "ours", dtype="bfloat16"),
    TorchPeer("ours-int8", "ours", dtype="int8"),
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in ALL}
