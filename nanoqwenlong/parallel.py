"""Many processes as one: the only file that knows torch.distributed.

One process is a world of one, not another branch: each function then returns what it was given. Under torchrun every
rank runs the same script and makes the same calls in the same order; what they say to each other is

    gather, reduce, any_rank     small things, over gloo on the CPU: numbers and JSON, never a pickle
    shard                        FSDP2: a rank keeps a part of every weight, gradient and optimizer state
    whole                        the weights of a sharded model in one piece, for sampling: no talk while it lasts

The unit in which sharded ranks must agree is a call of the model: each gathers the weights layer by layer, from all
ranks. group_pass.deal sees to it that all make equally many.
"""

import json
import re
import socket
import time
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.utils import get_env_variable_or_raise

Tensor = torch.Tensor
timeout = timedelta(minutes=30)         # of a wait for the other ranks; `start` sets it

from .errors import DeviceError, Elsewhere, LostRanks


def start(device: str, timeout_minutes: float) -> str:
    """Join the other processes that torchrun started, if it did. Returns the device of this one: "cuda" becomes
    "cuda:N", N being its number on the node."""
    global timeout
    timeout = timedelta(minutes=min(timeout_minutes, 1e6))
    if device.startswith("cuda") and not torch.cuda.is_available():
        require_device(device)                                 # which says so, before NCCL does
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        with named_losses():
            dist.init_process_group(backend(device), timeout=timeout)
    if device.startswith("cuda") and size() > 1:
        device = f"cuda:{dist.get_node_local_rank(fallback_rank=rank())}"
    require_device(device)
    return device


def require_device(device: str | torch.device) -> None:
    """Raises DeviceError if nothing can be computed there. A GPU becomes the current one: FSDP, NCCL and Triton take
    that."""
    try:
        torch.zeros(1, device=device).item()
        if torch.device(device).type == "cuda" and torch.device(device).index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).splitlines()[0].split(". ")[0][:160]
        raise DeviceError(f"--device {str(device)!r} cannot be used: {told}; without a GPU it is cpu") from None


def backend(device: str) -> str:
    """What ranks talk with: of tensors on the CPU always gloo."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


def stop() -> None:
    """Leave the world, if there is one. Without it torch complains at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def num_restarts() -> int:
    """How often torchrun has restarted the processes of this job (--max-restarts)."""
    return int(get_env_variable_or_raise("TORCHELASTIC_RESTART_COUNT")) if is_launched() else 0


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def num_hosts() -> int:
    return len(set(gather(socket.gethostname())))


# What ranks tell each other

def gather_flat(tensor: Tensor) -> list[Tensor]:
    """A one-dimensional CPU tensor of each rank, of any lengths and one dtype -> all of them, in the ranks' order."""
    if size() == 1:
        return [tensor]
    lengths = torch.zeros(size(), dtype=torch.int64)
    lengths[rank()] = len(tensor)
    with named_losses():
        dist.all_reduce(lengths)
        longest = int(lengths.max())
        padded = [tensor.new_empty(longest) for _ in range(size())]
        dist.all_gather(padded, torch.cat([tensor, tensor.new_zeros(longest - len(tensor))]))
    return [row[:length] for row, length in zip(padded, lengths.tolist())]


def gather(value) -> list:
    """What JSON can say, of each rank -> all of it, in the ranks' order."""
    if size() == 1:
        return [value]
    rows = gather_flat(torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8))
    return [json.loads(row.numpy().tobytes()) for row in rows]


def reduce(sums: dict[str, float], highest: Sequence[str] = ()) -> Counter:
    """The sums over all ranks under each of the names that any of them has; the highest value under those named so."""
    rows = gather(sums)
    return Counter({name: (max if name in highest else sum)(row[name] for row in rows if name in row)
                    for name in dict.fromkeys(name for row in rows for name in row)})


def any_rank(flag: bool) -> bool:
    """Whether it is set on one of the ranks."""
    return any(gather(bool(flag)))


def on_all_ranks(work: Callable, what: str) -> list:
    """Do `work()`, which talks to nobody, on every rank -> what each returned. If it failed with an OSError on one of
    them, that is raised on all, so that none goes on alone."""
    try:
        found = [work(), None]
    except OSError as error:
        found = [None, [error.errno, f"{what}: {reason(error)}"]]
    found = gather(found)
    for number, (_, error) in enumerate(found):
        if error:
            told = error[1] + (f" (rank {number})" if size() > 1 else "")
            raise OSError(error[0], told) if number == rank() else Elsewhere(error[0], told)
    return [result for result, _ in found]


def reason(error: OSError) -> str:
    """What is told of it: which file, and what was wrong."""
    if not error.strerror:
        return str(error) or type(error).__name__
    return (f"{error.filename}: " if error.filename else "") + error.strerror


@contextmanager
def named_losses():
    """A collective that fails because of another rank raises LostRanks, with one sentence."""
    try:
        yield
    except RuntimeError as error:                              # gloo has no error of its own
        if not is_loss(error):
            raise
        raise LostRanks(loss(error)) from None


def is_loss(error: BaseException) -> bool:
    """Whether this is how torch says that another rank is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError | LostRanks) or isinstance(error, RuntimeError) and size() > 1 and any(
        words in text for words in ("connection closed", "timed out", "timeout", "connection reset", "broken pipe",
                                    "connection refused", "gloo"))


def loss(error: BaseException) -> str:
    """The sentence about it, with the ranks that no longer answer."""
    if isinstance(error, LostRanks):
        return str(error)
    missing = missing_ranks()
    who = "lost " + ("another rank" if not missing else "rank " + ", ".join(map(str, missing)))
    said = re.sub(r"^(\[[^\]]*\] ?)+", "", " ".join(str(error).split())).split(". ")[0][:160]
    return (f"rank {rank()} {who}: {said} (ranks wait {timeout.total_seconds() / 60:g} minutes for each other: "
            "--timeout-minutes); what it said itself, if anything, stands above; the run goes on from its last "
            "checkpoint when it is started again")


def missing_ranks(seconds: float = 3.0) -> list[int]:
    """The ranks that do not answer a roll call, which is all that can be known of them once a collective failed."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"alive/{rank()}", "yes")
        end = time.monotonic() + seconds
        missing = [number for number in range(size()) if not store.check([f"alive/{number}"])]
        while missing and time.monotonic() < end:
            time.sleep(0.05)
            missing = [number for number in missing if not store.check([f"alive/{number}"])]
        return missing
    except (RuntimeError, ValueError):                         # the store went with them
        return []


def balance(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Deal the items into `parts` of nearly equal cost: the dearest first, each to the part that has least so far.

    >>> balance([1, 9, 4, 5, 2], 2)
    [[1, 4], [3, 2, 0]]
    """
    dealt, totals = [[] for _ in range(parts)], [0.0] * parts
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        part = min(range(parts), key=totals.__getitem__)
        dealt[part].append(item)
        totals[part] += costs[item]
    return dealt


# A model in parts

def shard(model: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype, device: str = "cpu", offload: bool = False,
          replicas: int = 0) -> nn.Module:
    """FSDP2: every weight split by rows over the ranks; a layer's weights are gathered while it runs, in `dtype`, and
    what is outside of the layers for the whole pass. Gradients are sums over the ranks, in the dtype of the weights.

    With several nodes each holds a whole model, in parts, and gradients are summed over them (HSDP); `replicas` says
    how many, 0: one per host. offload: weights, gradients and optimizer live in CPU memory. The weights may still be on
    the meta device. A lone process that computes in its weights' dtype has nothing to split: its model stays as it
    is."""
    from torch.distributed.device_mesh import init_device_mesh  # imported here: they take seconds
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
    own = next(model.parameters()).dtype
    if size() == 1 and dtype == own and not offload:
        return model
    kind = torch.device(device).type
    if not dist.is_initialized():
        dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)
    replicas = replicas or num_hosts()
    mesh = (init_device_mesh(kind, (replicas, size() // replicas), mesh_dim_names=("replicate", "shard"))
            if replicas > 1 else init_device_mesh(kind, (size(),), mesh_dim_names=("shard",)))
    settings = dict(mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=None if dtype == own else dtype,
                                                              reduce_dtype=None if dtype == own else own))
    if offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=kind == "cuda")
        model.compute_device = torch.device(device)
    for layer in layers:
        fully_shard(layer, **settings)
    fully_shard(model, reshard_after_forward=False, **settings)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)                             # not recursive
            module.set_force_sum_reduction_for_comms(True)                     # gloo knows no scaled sum
    warnings.filterwarnings("ignore", message=".*returned a view tensor")      # nobody writes into keys and values
    return model


@contextmanager
def whole(model: nn.Module):
    """Inside, a sharded model is a plain one: all weights in one piece, in the dtype it computes in, the hooks of FSDP
    off, so that ranks may call it as often as they like and a CUDA graph sees nothing but the model. For use under
    no_grad (inference_mode would break the next training pass). Costs the whole weights' memory on every rank, 2 bytes
    a parameter in bfloat16, beside the rank's own share of weights, gradients and optimizer."""
    from torch.distributed.fsdp import FSDPModule  # imported here: it takes seconds
    modules = [module for module in model.modules() if isinstance(module, FSDPModule) and module._forward_pre_hooks]
    hooks = [(module._forward_pre_hooks, module._forward_hooks) for module in modules]
    with named_losses():
        for module in modules:
            module.unshard()
    for module in modules:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield model
    finally:
        for module, (before, after) in zip(modules, hooks):
            module._forward_pre_hooks, module._forward_hooks = before, after
            module.reshard()


def at_rest(model: nn.Module) -> None:
    """After passes without a gradient: what the last one left gathered (what is outside of the layers) is given up, and
    the model's parameters are each rank's own rows again. A backward pass does that by itself."""
    if hasattr(model, "reshard"):
        model.reshard()


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that may be sharded: writing into them writes into it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rows(tensor: Tensor) -> slice:
    """Which rows those are: FSDP2 splits like torch.chunk."""
    if not is_sharded(tensor):
        return slice(0, tensor.shape[0]) if tensor.ndim else slice(None)
    mesh = tensor.device_mesh
    share = -(-tensor.shape[0] // mesh.size(-1))
    start = min(share * mesh.get_coordinate()[-1], tensor.shape[0])
    return slice(start, start + tensor.to_local().shape[0])


def is_replica(tensor: Tensor) -> bool:
    """Whether a rank before this one holds the same rows."""
    if not is_sharded(tensor):
        return rank() > 0
    return tensor.device_mesh.ndim > 1 and tensor.device_mesh.get_coordinate()[0] > 0


def full(tensor: Tensor) -> Tensor | None:
    """All rows, on rank 0; the other ranks help, and get None."""
    if is_sharded(tensor):
        with named_losses():
            tensor = tensor.full_tensor()
    return tensor.cpu() if rank() == 0 else None


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all of them, the same on every rank to the last bit."""
    own = float(nn.utils.get_total_norm([local(tensor) for tensor in tensors]))
    if size() == 1 or not any(map(is_sharded, tensors)):
        return own
    return sum(gather(0.0 if is_replica(tensors[0]) else own * own)) ** 0.5
