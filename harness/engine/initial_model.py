"""The model as the recipe makes it: from the run's seed, and the same on every rank."""

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harness.config.errors import UserError
from harness.data.sample_order import derive
from harness.data.seeding import MODEL, seed_all
from harness.distributed.process_group import gather, peers
from harness.engine.initial_weights import start_from
from harness.engine.param_names import persistent
from harness.modeling.tensor_digest import close, digest, sketch
from harness.recipes.base import Recipe
from harness.recipes.contract import fresh_model
from harness.supervision.output_redirect import say


def initial_model(recipe: Recipe, seed: int, init_from: str | None = None, *, partial: bool = False) -> nn.Module:
    """The recipe's model, fresh or with the weights of `init_from`; `seed` is the run's. All ranks call it.

    `partial`: weights that init_from lacks stay fresh, and rank 0 lists them.

    Raises UserError if ranks get different ones, the weights do not fit, a tensor has no contents, or one that is trained is not
    finite.
    """
    seed_all(derive(seed, MODEL))
    model = fresh_model(recipe)
    if init_from is not None:
        listed = start_from(model, init_from, partial=partial)
        if listed and peers()[0] == 0:
            say(f"note   init_from: {listed}")
    _check_contents(model)
    if peers()[1] > 1:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        _check_equal({name: tensor for name, tensor in state.items() if not is_lazy(tensor)})
    return model


def _check_contents(model: nn.Module) -> None:
    """Raises UserError for tensors without contents or trained weights that are not finite: such a model cannot be trained or
    saved."""
    hollow = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if hollow:
        at = f"model() has tensors without contents, on the meta device ({', '.join(hollow[:4])})"
        raise UserError("recipe.use", at, "make them on the CPU, or give them weights within model()")
    weights = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not is_lazy(p) and p.element_size() > 1]
    bad = [name for name, weight in weights if not weight.isfinite().all()]
    if bad:
        at = f"model() has trained weights that are not finite ({', '.join(bad[:4])})"
        raise UserError("recipe.use", at, "torch.empty() leaves memory uninitialised: initialise these parameters")


def _check_equal(mine: dict[str, Tensor]) -> None:
    """Raises UserError if names, types, shapes or numbers differ between ranks by more than rounding on another processor."""
    digests = gather({name: f"{digest(tensor)} {tensor.requires_grad}" for name, tensor in mine.items()})
    if all(one == digests[0] for one in digests):
        return
    for rank, one in enumerate(digests):
        odd = sorted(set(one) ^ set(digests[0]))
        if odd:
            raise _different(odd[0], rank, "exists on one of them only")
    names = [name for name in mine if any(one[name] != digests[0][name] for one in digests)]
    sketches = gather(
        {name: (f"{mine[name].dtype}{tuple(mine[name].shape)}{mine[name].requires_grad}", sketch(mine[name])) for name in names}
    )
    for name in names:
        kind, numbers = sketches[0][name]
        for rank, other in enumerate(sketches):
            if other[name][0] != kind or not close(other[name][1], numbers):
                raise _different(name, rank, "is not the same")


def _different(name: str, rank: int, how: str) -> UserError:
    at = f"model() gave rank {rank} a different model than rank 0: {name} {how}"
    return UserError("recipe.use", at, "draw from torch, numpy.random or random, which are seeded for all ranks alike")


def unsaved(model: nn.Module) -> dict[str, list[float]]:
    """Sketches of the buffers that no checkpoint has (`persistent=False`), by name."""
    kept = persistent(model)
    return {name: sketch(buffer) for name, buffer in model.named_buffers() if name not in kept}
