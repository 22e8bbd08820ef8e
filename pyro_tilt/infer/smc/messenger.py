# SPDX-License-Identifier: Apache-2.0
"""Takes the steps of a program over, and weighs and resamples its particles between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.smc.checks import (
    advice,
    one_per_particle,
    outside_plates,
    without_density,
)
from pyro_tilt.infer.smc.errors import StepError, TwistError
from pyro_tilt.infer.smc.guide import GuidePass
from pyro_tilt.infer.smc.keeper import Keeper
from pyro_tilt.infer.smc.paths import PathStore
from pyro_tilt.infer.smc.population import Population
from pyro_tilt.infer.smc.proposals import Proposal, checked_proposal
from pyro_tilt.infer.smc.records import Group, gathered
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.reindex import reindex
from pyro_tilt.poutine import fast_normal
from pyro_tilt.poutine.scan import plain_scan
from pyro_tilt.poutine.tilt_factor import conform
from pyro_tilt.poutine.weight_messenger import WeightMessenger
from pyro_tilt.rewards import log_tilt

Twist = Callable[[Any, Any], Tensor]


class StepMessenger(WeightMessenger):
    """
    Runs a program as a population of particles. To be entered outside a ``ParticlePlate``.

    Values of sites stay where they were recorded; only the carry, the twists and the rewards so
    far move at a resampling, and one index for every group of sites that is to survive.

    :param size: number of particles.
    :param dim: their batch dimension.
    :param population: weights, evidence and lineage.
    :param twist: log twist of a carry and the element of ``xs`` of its step, in place of the
        program's own statements.
    :param proposal: laws to draw latent sites from.
    :param guide: proposes the sites of each step in the same pass.
    :param paths: where to keep whole paths.
    :param keeper: saves the run and takes a saved one up.
    :param on_steps: called with the number of steps of a scan as it starts.
    :param on_step: called after each step.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        population: Population,
        *,
        twist: Twist | None = None,
        proposal: Proposal | None = None,
        guide: GuidePass | None = None,
        paths: PathStore | None = None,
        keeper: Keeper | None = None,
        on_steps: Callable[[int], object] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(size, dim)
        self.population = population
        self.twist_fn = twist
        self.proposal = proposal
        self.guide = guide
        self.paths = paths
        self.keeper = keeper
        self.on_steps = on_steps
        self.on_step = on_step
        self.steps_done = 0
        self.num_tilts = 0
        self.value_calls = 0
        self.ranks: dict[str, int] = {}
        self.groups: list[Group] = []
        self.last: Group | None = None
        self._proposed: dict[str, Any] = {}
        self._shape = (size,) if dim == -1 else ()
        self._twist: Tensor | None = None
        self.dropped: dict[str, None] = {}
        self._claimed: set[str] = set()
        self._mark = 0
        self._here: tuple[Any, Any] | None = None
        self._where = "before the first step"
        self._log_guide: Tensor | None = None

    def begin(self, guided: bool = True) -> None:
        """Starts a run; with a guide, draws what it proposes before the first step."""
        if self.guide is not None and guided:
            self._follow(self.guide.begin())

    def finish(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The final log weights, and the values of what survived, particle by particle."""
        self._where = "after the last step"
        increment = self._take()
        self._check_guided()
        log_weights = self.population.finish(increment)
        return log_weights, self.survivors()

    def renew(self) -> Callable[[], None]:
        """Lets the next step use the names of the last one; returns how to take that back."""
        last, self.last = self.last, None
        names = [] if last is None else last.names
        saved = {name: self.values.pop(name) for name in names}
        self._mark = len(self.values)
        self.factors.clear()
        self._claimed.clear()

        def restore() -> None:
            self.values.update(saved)
            self._mark = len(self.values)
            self.last = last

        return restore

    @property
    def last_site(self) -> str | None:
        """The site that was recorded last."""
        return next(reversed(self.values), None)

    def rollback(self) -> None:
        """Forgets the sites of a step that did not end."""
        for name in list(islice(reversed(self.values), len(self.values) - self._mark)):
            del self.values[name]

    def survivors(self) -> dict[str, Tensor]:
        """Values of the sites outside steps and of the last step, for the particles of now."""
        self.close()
        groups = [*self.groups, *([self.last] if self.last is not None else [])]
        found = {
            name: gathered(self.values[name], group.index)
            for group in groups
            for name in group.names
        }
        return {name: found[name] for name in self.values if name in found}

    def _pyro_tilt_scan(self, msg: Any) -> None:
        step, carry, xs = msg["args"]
        name = msg["name"]
        msg["done"] = msg["stop"] = True
        if self._here is not None:
            # An inner loop is part of the step that it stands in.
            msg["value"] = plain_scan(step, carry, xs)
            return
        self._claim("scan", name)
        outside_plates("scan", name, msg)
        msg["value"] = self.loop(name, step, carry, xs)

    def _pyro_tilt_checkpoint(self, msg: Any) -> None:
        name, state = msg["name"], msg["args"]
        msg["done"] = msg["stop"] = True
        if self._here is not None:
            raise ValueError(
                f"checkpoint '{name}' stands in a step of a scan, whose carry is the checkpoint; "
                "remove one of the two"
            )
        if self.keeper is not None:
            raise ValueError(
                f"checkpoint '{name}': a run can be saved and resumed where its steps are those of "
                "a scan; write the loop as one, or run without save_to"
            )
        self._claim("checkpoint", name)
        outside_plates("checkpoint", name, msg)
        self._where = f"checkpoint '{name}' (step {self.steps_done})"
        if not self.steps_done:
            self.close()
        whole = state[0] if len(state) == 1 else state
        msg["value"] = self._boundary(whole, self.steps_done)

    def _pyro_tilt_twist(self, msg: Any) -> None:
        name = msg["name"]
        msg["done"] = msg["stop"] = True
        self._claim("twist", name)
        if self.twist_fn is not None or msg["mask"] is False:
            return
        (log_psi,) = msg["args"]
        if callable(log_psi):
            log_psi = log_psi()
        self.value_calls += self.size
        try:
            log_psi = conform(log_psi, msg["cond_indep_stack"], name=name)
        except ValueError as error:
            raise TwistError(str(error).replace("the reward", "the twist")) from None
        log_psi = as_double(self._per_particle(name, log_psi))
        self._twist = log_psi if self._twist is None else self._twist + log_psi

    def loop(self, name: str, step: Callable[[Any, Any], Any], carry: Any, xs: Iterable) -> Any:
        """The steps of a scan."""
        items = list(xs)
        self.close()
        if self.on_steps is not None:
            self.on_steps(len(items))
        if self.guide is not None:
            self.guide.enter(name)
        first = 0
        if self.keeper is not None and items:
            carry, first = self.keeper.enter(self, name, step, carry, items)
            if self.on_step is not None:
                # The first step was done again for comparison, and counted.
                for _ in range(first - 1):
                    self.on_step()
        for k in range(first, len(items)):
            self._where = f"scan '{name}', step {k}"
            carry = self.step(step, carry, items[k])
            if self.keeper is not None:
                self.keeper.after(self, carry, k + 1)
        if self.keeper is not None and items:
            self.keeper.leave(carry)
        self._where = f"after scan '{name}'"
        return carry

    def advance(self, step: Callable[[Any, Any], Any], carry: Any, x: Any) -> Any:
        """One step of a stream."""
        self._where = f"step {self.steps_done}"
        return self.step(step, carry, x)

    def step(self, step: Callable[[Any, Any], Any], carry: Any, x: Any) -> Any:
        """One step, with what happens at its end."""
        self._here = carry, x
        try:
            if self.guide is not None:
                self._follow(self.guide.step(x))
            carry = step(carry, x)
            return self._boundary(carry, x)
        except SamplingError:
            raise
        except Exception as error:
            raise StepError(
                f"{self._where}: {type(error).__name__}: {error}{advice(error, self.last_site)}. "
                "The particles after the last whole step are in .partial of this error"
            ) from error
        finally:
            self._here = None

    def _pyro_sample(self, msg: Any) -> None:
        if self.proposal is not None and not (msg["is_observed"] or msg["done"]):
            name = msg["name"]
            if name not in self.replay and not site_is_subsample(msg):
                carry, x = (None, None) if self._here is None else self._here
                law = self.proposal(name, msg["fn"], carry, x)
                if law is not None:
                    law = checked_proposal(name, msg["fn"], law)
                    self._proposed[name] = law
                    msg["value"], msg["done"] = law.sample(), True
                    return
        super()._pyro_sample(msg)

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            try:
                self._pyro_post_sample(msg)
            except NotImplementedError as error:
                raise without_density(msg["name"], msg["fn"], error) from error

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.dropped:
            raise RuntimeError(f"multiple sites named '{name}'")
        fn = msg["fn"]
        if msg["is_observed"] and not msg["infer"] and not isinstance(fn, MaskedDistribution):
            # An ordinary observation needs none of the distinctions of the base class.
            if name in self.factors or name in self.values:
                raise RuntimeError(f"multiple sites named '{name}'")
            self.factors[name] = None
            if msg["mask"] is not False:
                self._add(name, fast_normal.density(fn, msg["value"]), msg)
            return
        super()._pyro_post_sample(msg)
        if self._proposed:
            law = self._proposed.pop(name, None)
            if law is not None:
                fn, value = msg["fn"], msg["value"]
                self._add(
                    name, fast_normal.density(fn, value) - fast_normal.density(law, value), msg
                )
        if name in self.values:
            frames = msg["cond_indep_stack"]
            if len(frames) > 1:
                self.ranks[name] = max(-f.dim for f in frames if f is not frames[0])
            if msg["is_observed"]:
                # A recorded value that all particles share gets their axis, so as to move too.
                value = msg["value"]
                if value.dim() == 0 or value.shape[0] != self.size:
                    self.values[name] = value.expand(self.size, *value.shape)

    def _add(self, name: str, log_prob: Tensor, msg: Any) -> None:
        # As in the base class, but the first of a step is neither copied nor converted: it is
        # added to the float64 log weights as it is.
        if msg["mask"] is not None or not (type(msg["scale"]) is float and msg["scale"] == 1.0):
            log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        if log_prob.shape != self._shape:
            log_prob = self._per_particle(name, log_prob)
        total = self._total
        self._total = log_prob if total is None else as_double(total) + log_prob

    def _follow(self, proposed: WeightMessenger | None) -> None:
        """Takes over what the guide drew for the sites to come."""
        self._check_guided()
        self.replay = {}
        if proposed is not None:
            self.replay = {**proposed.values, **proposed.subsamples}
            fresh = proposed.log_factors
            if fresh is not None:
                old = self._log_guide
                self._log_guide = fresh if old is None else old + fresh

    def _check_guided(self) -> None:
        known = self.values.keys() | self.subsamples.keys()
        unknown = [name for name in self.replay if name not in known]
        if unknown:
            raise ValueError(
                f"guide: it proposes sites {unknown}, which the program does not sample in the "
                "same step"
            )

    def _take(self) -> Tensor | None:
        """The log weight gathered since the last step."""
        total, self._total = self._total, None
        if self._log_guide is not None:
            total = -self._log_guide if total is None else total - self._log_guide
            self._log_guide = None
        for _, reward, beta in self.tilts:
            self.population.add_reward(reward, float(beta))
            tilt = as_double(log_tilt(reward, beta))
            total = tilt if total is None else total + tilt
        self.num_tilts += len(self.tilts)
        self.tilts.clear()
        return total

    def _boundary(self, carry: Any, x: Any) -> Any:
        twist, self._twist = self._twist, None
        if self.twist_fn is not None:
            twist = one_per_particle(self.twist_fn(carry, x), self.size, self._where)
            self.value_calls += self.size
        group = self._step_group()
        index = self.population.advance(self._take(), twist, self._where)
        self._replace_last(group)
        if index is not None:
            carry = reindex(carry, index, size=self.size, path="carry")
            for kept in self.groups:
                kept.move(index)
            group.move(index)
            if self.paths is not None:
                self.paths.move(index)
            if self.guide is not None:
                self.guide.move(index)
        self.steps_done += 1
        if self.on_step is not None:
            self.on_step()
        return carry

    def close(self) -> None:
        """Gives the sites since the last boundary, outside steps, a group of their own."""
        fresh = len(self.values) - self._mark
        if fresh:
            self.groups.append(Group(list(islice(reversed(self.values), fresh))[::-1]))
            self._mark = len(self.values)

    def _step_group(self) -> Group:
        fresh = len(self.values) - self._mark
        return Group(list(islice(reversed(self.values), fresh))[::-1])

    def _replace_last(self, group: Group) -> None:
        if self.paths is not None:
            self.paths.append({name: self.values[name] for name in group.names})
        if self.last is not None:
            for name in self.last.names:
                del self.values[name]
                self.dropped[name] = None
        self._mark = len(self.values)
        self.last = group

    def _claim(self, kind: str, name: str) -> None:
        key = f"{kind} '{name}'"
        if key in self._claimed:
            raise ValueError(f"two statements are named {key}; give each a name of its own")
        self._claimed.add(key)
