"""Many processes as one: the only file that imports torch.distributed.

All ranks make the same calls in the same order. They exchange JSON over gloo on the CPU, never a pickle, and the parts
of a sharded model (FSDP2). A pass gathers its weights from all ranks, so all make equally many (engine/deal.py).
"""

import json
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.utils import get_env_variable_or_raise

from .errors import DeviceError, Elsewhere, LostRanks, reason

is_launched = dist.is_torchelastic_launched     # whether torchrun started this process
NCCL = "cpu:gloo,cuda:nccl"                     # with GPUs: tensors on the CPU still go over gloo
timeout = timedelta(minutes=30)                 # how long ranks wait for each other. `start` sets it


def start(device: str, timeout_minutes: float) -> str:
    """The device of this rank, after joining the others: "cuda:N" under torchrun. Raises DeviceError if unusable."""
    global timeout
    timeout = timedelta(minutes=min(timeout_minutes, 1e6))
    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        require_device(device)                                 # it raises a clear error. NCCL would not
    if is_launched() and not dist.is_initialized():
        dist.init_process_group(NCCL if on_gpu else "gloo", timeout=timeout)
    if on_gpu and size() > 1:
        device = f"cuda:{dist.get_node_local_rank(fallback_rank=rank())}"
    require_device(device)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False          # sums in float32
    return device


def require_device(device: str | torch.device) -> None:
    """Raises DeviceError if the device cannot compute. Makes a GPU the current one, which FSDP, NCCL and Triton use."""
    try:
        torch.zeros(1, device=device).item()
        if torch.device(device).type == "cuda" and torch.device(device).index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:160]
        raise DeviceError(f"--device {str(device)!r} cannot be used: {reason}; without a GPU it is cpu") from None


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def num_restarts() -> int:
    return int(get_env_variable_or_raise("TORCHELASTIC_RESTART_COUNT")) if is_launched() else 0


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def num_hosts() -> int:
    return len(set(gather(socket.gethostname())))


def gather(value) -> list:
    """The values of all ranks, in their order. A value is anything that JSON can hold."""
    if size() == 1:
        return [value]
    text = json.dumps(value).encode()
    lengths = torch.zeros(size(), dtype=torch.int64)
    lengths[rank()] = len(text)
    dist.all_reduce(lengths)
    longest = int(lengths.max())
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)       # JSON may end with spaces
    rows = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(rows, padded)
    return [json.loads(row.numpy().tobytes()) for row in rows]


def reduce(sums: dict[str, float], highest: Sequence[str] = ()) -> Counter:
    """The sums over all ranks, by name. A rank may lack a name. Names in `highest` get the maximum instead."""
    rows, totals = gather(sums), Counter()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        totals[name] = max(values) if name in highest else sum(values)
    return totals


def on_all_ranks(work: Callable, what: str) -> list:
    """The results of `work()` on all ranks. It must not communicate. If it raises an OSError on one rank, all raise."""
    try:
        outcome = [work(), None]
    except OSError as error:
        outcome = [None, [error.errno, f"{what}: {reason(error)}"]]
    outcomes = gather(outcome)
    for number, (_, failure) in enumerate(outcomes):
        if failure:
            text = failure[1] + (f" (rank {number})" if size() > 1 else "")
            raise OSError(failure[0], text) if number == rank() else Elsewhere(failure[0], text)
    return [result for result, _ in outcomes]


def balance(costs: Sequence[float], parts: int) -> list[list[int]]:
    """The items in `parts` of nearly equal cost: the most expensive first, each to the cheapest part so far."""
    dealt, totals = [[] for _ in range(parts)], [0.0] * parts
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        part = min(range(parts), key=totals.__getitem__)
        dealt[part].append(item)
        totals[part] += costs[item]
    return dealt


def lost_ranks(error: BaseException | None) -> LostRanks | None:
    """If torch reports with this error that other ranks are gone: the same as a sentence that names them."""
    words = ("connection", "timed out", "timeout", "broken pipe", "gloo")      # gloo has no error class of its own
    is_gloo = type(error) is RuntimeError and size() > 1 and any(word in str(error).lower() for word in words)
    if not is_gloo and not isinstance(error, dist.DistError):
        return None
    silent = []
    with suppress(RuntimeError, ValueError):                   # if the rank that held the store is gone
        store = dist.distributed_c10d._get_default_store()
        store.set(f"alive/{rank()}", "yes")
        time.sleep(3)
        silent = [str(number) for number in range(size()) if not store.check([f"alive/{number}"])]
    missing = f"rank {', '.join(silent)}" if silent else "another rank"
    return LostRanks(f"rank {rank()} lost {missing}: {' '.join(str(error).split())[:160]} (ranks wait "
                     f"{timeout.total_seconds() / 60:g} minutes for each other: --timeout-minutes); what that rank "
                     "reported stands above; the same command resumes the run from its last checkpoint")


def shard(model: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype, device: str = "cpu", offload: bool = False,
          replicas: int = 0) -> nn.Module:
    """The model, split by FSDP2: every rank keeps some rows of every weight. A layer's weights are gathered in `dtype`
    while it runs, all other weights for the whole pass. Gradients are sums over the ranks, in the dtype of the weights.
    A lone process keeps the model as it is, unless it offloads: see `compute_in`.
    replicas: how many whole models there are, each split over its own ranks (HSDP). 0: one per host."""
    if size() == 1 and not offload:
        return model
    from torch.distributed.device_mesh import init_device_mesh  # imported here: they take seconds
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
    weights_dtype = next(model.parameters()).dtype
    kind = torch.device(device).type
    if not dist.is_initialized():
        dist.init_process_group(NCCL if kind == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    replicas = replicas or num_hosts()
    shape = (replicas, size() // replicas) if replicas > 1 else (size(),)
    settings = dict(mesh=init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")[-len(shape):]))
    if dtype != weights_dtype:
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=weights_dtype)
    if offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=kind == "cuda")
        model.compute_device = torch.device(device)
    for module in [*layers, model]:
        fully_shard(module, reshard_after_forward=module is not model, **settings)
        module.set_gradient_divide_factor(1.0)                                 # gradients are sums
        module.set_force_sum_reduction_for_comms(True)                         # gloo has no scaled sum
    warnings.filterwarnings("ignore", message=".*returned a view tensor")      # nobody writes into keys and values
    return model


def compute_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model, computing with copies of its weights in `dtype`. If it is sharded, or in this dtype, it has no copies.

    Python looks into a module's __dict__ before torch looks among its parameters. So `module.weight` is the copy, while
    `parameters()` gives the weights. Autograd converts each gradient to the dtype of the weights before it adds it to
    theirs."""
    copies = {}                                                # tied weights share a copy
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dtype != dtype and not is_sharded(weight):
                copies[weight] = copies[weight] if weight in copies else weight.to(dtype)
                module.__dict__[name] = copies[weight]
    return model


@torch.no_grad()
def renew_copies(model: nn.Module) -> None:
    """Rounds the weights into their copies again, if they have any."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if name in module.__dict__:
                module.__dict__[name].copy_(weight)


@contextmanager
def whole(model: nn.Module):
    """Inside, a sharded model is plain: each rank may call it as often as it likes. It costs 2 bytes a parameter in
    bfloat16. Use it under no_grad: inference_mode would break the next training pass."""
    modules = [module for module in model.modules() if hasattr(module, "unshard") and module._forward_pre_hooks]
    hooks = [(module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module in modules:
        module.unshard()
        module._forward_pre_hooks, module._forward_hooks = {}, {}
    try:
        yield model
    finally:
        for module, (before, after) in zip(modules, hooks):
            module._forward_pre_hooks, module._forward_hooks = before, after
            module.reshard()


def at_rest(model: nn.Module) -> None:
    """Frees the weights outside of the layers, which a pass without a gradient leaves gathered."""
    if hasattr(model, "reshard"):
        model.reshard()


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that may be sharded, as a view."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rows(tensor: Tensor) -> slice:
    """Which rows these are. FSDP2 splits like torch.chunk."""
    if not is_sharded(tensor):
        return slice(0, None)
    mesh = tensor.device_mesh
    share = -(-len(tensor) // mesh.size(-1))
    start = min(share * mesh.get_coordinate()[-1], len(tensor))
    return slice(start, start + len(tensor.to_local()))


def is_replica(tensor: Tensor) -> bool:
    """Whether a rank before this one holds the same rows."""
    if not is_sharded(tensor):
        return rank() > 0
    return tensor.device_mesh.ndim > 1 and tensor.device_mesh.get_coordinate()[0] > 0


def full(tensor: Tensor) -> Tensor | None:
    """All rows on rank 0, in CPU memory. The other ranks must call it, too, and get None."""
    tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return tensor.cpu() if rank() == 0 else None


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all of them together, the same on every rank to the last bit."""
    local_norm = float(nn.utils.get_total_norm([local(tensor) for tensor in tensors]))
    if size() == 1 or not any(map(is_sharded, tensors)):
        return local_norm
    return sum(gather(0.0 if is_replica(tensors[0]) else local_norm * local_norm)) ** 0.5
