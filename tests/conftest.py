"""What the tests share: a watch for pickles, one thread, Triton's interpreter if there is no GPU, small random models
of transformers, the toy model and its tokenizer."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"                        # before the first import of triton, which reads it


from nanoqwenlong import toy

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(path) for path in (ROOT / "nanoqwenlong", ROOT / "kernels", *ROOT.glob("*.py")))
UNPICKLED = (open(os.environ["UNPICKLED"], "rb") if "PYTEST_XDIST_WORKER" in os.environ else
             tempfile.NamedTemporaryFile(prefix="unpickled-"))  # a file, since forked ranks and pytest's own workers
os.environ["UNPICKLED"] = UNPICKLED.name                        # write into it too; the first process looks at it last


def note_unpickling(event: str, args: tuple) -> None:
    """Record what is unpickled while a function of this project is on the stack. Those of the tests do not count."""
    if event != "pickle.find_class":
        return
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    if frame is not None:
        line = f"{'.'.join(map(str, args))} under {frame.f_code.co_filename}:{frame.f_lineno}\n"
        os.write(os.open(UNPICKLED.name, os.O_WRONLY | os.O_APPEND), line.encode())


sys.addaudithook(note_unpickling)


def pytest_sessionfinish(session, exitstatus) -> None:
    if found := Path(UNPICKLED.name).read_text():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nFAILED: nothing is to be read through pickle, but these were:\n{found}")


def repair_interpreter() -> None:
    """Repair three faults of Triton 3.9's interpreter. It multiplies the bit patterns of bfloat16 numbers. It truncates
    where it should round. It spends half of its time on preparing each call of a function in a kernel again."""
    try:
        import triton.language as tl
        from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
    except ImportError:                                         # no Triton, or no interpreter
        return
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self, a, b, d, *options):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, d, *options)

    def cast_impl(self, x, dtype):
        if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, dtype)
        return TensorHandle(torch.tensor(x.data).bfloat16().view(torch.uint16).numpy(), tl.bfloat16)

    def call_prepared(self, *args, **options):
        if self.fn.__module__ in prepared:
            return self.rewrite()(*args, **options)
        prepared.add(self.fn.__module__)
        return call(self, *args, **options)

    call, prepared = InterpretedFunction.__call__, set()
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    InterpretedFunction.__call__ = call_prepared


if "TRITON_INTERPRET" in os.environ:
    repair_interpreter()
SMALL = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
             rms_norm_eps=1e-5, initializer_range=0.1, tie_word_embeddings=False)
SMALL_EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24)
EAGER = dict(attn_implementation="eager", experts_implementation="eager")      # the plain form of both


def random_hf(kind: str, seed: int = 0, **settings):
    """transformers' own model of this kind (config.ARCHITECTURES) with random weights, norms and biases included: with
    norms of one and biases of zero several bugs would hide. `settings` replace those of SMALL."""
    from transformers import AutoConfig, AutoModelForCausalLM
    heads = {"head_dim": 16} if kind.startswith("qwen3") else {}
    experts = SMALL_EXPERTS if kind == "qwen3_moe" else {}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SMALL, **heads, **experts, **settings})
    model = AutoModelForCausalLM.from_config(config, **EAGER).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def toy_pair():
    """toy.new_model(0): the tiny model and its tokenizer. Do not change the weights."""
    return toy.new_model(0)


@pytest.fixture(scope="session")
def toy_directory(toy_pair, tmp_path_factory) -> Path:
    """The same as a model directory. Copy it before you change a file."""
    directory = tmp_path_factory.mktemp("toy")
    for part in toy_pair:
        part.save_pretrained(directory)
    return directory
