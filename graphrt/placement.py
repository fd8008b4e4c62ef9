"""Placement: a backend and a reason in words for every node, and a home for every weight and state.

Pure functions, in this order; a later step fills only what the ones before left open:

    homes      weights and states: the user's assignment, an override, else the host, where their data is
    decided    nodes: the user's assignment, a node rule, the memory they write, the matrix they multiply with; a device
               may take a node whose matrix is on the host, if the batch is worth it (op offload)
    expanded   the others take the backend of their neighbours, so that few splits are needed and few bytes cross
    left over  where most of the sources' bytes lie

Within one memory the first backend that supports a node takes it, in the order in which they are listed; so a faster
backend over the same memory (blas before cpu) takes what it supports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphrt.backend import Backend
from graphrt.buffer import HOST
from graphrt.errors import PlacementError, SettingsError
from graphrt.expansion import Users, best_cut, users_of
from graphrt.graph import Graph
from graphrt.overrides import Rule, first_match
from graphrt.settings import Settings
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class Placement:
    """Where a node runs, or a weight or state lives, why, and what was tried before it and why not.

    `told` where the user or a rule said so; `offloaded` where a node's weight is brought to it for a large batch.
    """

    backend: Backend
    reason: str
    rejected: tuple[str, ...] = ()
    told: bool = False
    offloaded: bool = False


@dataclass
class Placements:
    """The placement of a graph: homes of weights and states, and every node that computes (views take none)."""

    homes: dict[Tensor, Placement] = field(default_factory=dict)
    nodes: dict[Tensor, Placement] = field(default_factory=dict)

    def memory_of(self, tensor: Tensor) -> str:
        """The memory in which a tensor's bytes lie."""
        root = tensor.root
        placement = self.homes.get(root) or self.nodes.get(root)
        return placement.backend.memory if placement is not None else HOST


def place(
    graph: Graph,
    backends: Sequence[Backend],
    settings: Settings,
    *,
    rules: Sequence[Rule] = (),
    node_rules: Sequence[Rule] = (),
    assigned: Mapping[Tensor, str] | None = None,
) -> Placements:
    """Place a graph.

    Args:
        backends: the preferred first; the first one on the host's memory is where everything goes that nothing moves.
        rules: for weights and states; node_rules: for nodes, by name or op; both count their matches.
        assigned: the user's own word on tensors and nodes, by backend name.
    Raises: PlacementError if no backend supports a node, with each one's reason and remedy; SettingsError if there is
        no backend on the host's memory or an assignment names none.
    """
    return _Placer(graph, backends, settings, rules, node_rules, assigned or {}).place()


class _Placer:
    def __init__(
        self,
        graph: Graph,
        backends: Sequence[Backend],
        settings: Settings,
        rules: Sequence[Rule],
        node_rules: Sequence[Rule],
        assigned: Mapping[Tensor, str],
    ) -> None:
        self.graph, self.settings = graph, settings
        self.backends = list(backends)
        self.by_name = {backend.name: backend for backend in backends}
        self.rules, self.node_rules, self.assigned = rules, node_rules, assigned
        self.hosts = [backend for backend in backends if backend.memory == HOST]
        self.devices = [backend for backend in backends if backend.memory != HOST]
        if not self.hosts:
            raise SettingsError('[placement] no backend works on the host\'s memory; add "cpu" or "reference"')
        self.result = Placements()
        self.rejected: dict[Tensor, list[str]] = {}
        self.writers: dict[Tensor, list[Tensor]] = {}
        self.open: list[Tensor] = []

    def place(self) -> Placements:
        computing = [node for node in self.graph.nodes if node.op is not None and node.op.kind != "view"]
        for node in computing:
            if node.is_view:
                self.writers.setdefault(node.root, []).append(node)
        self._place_leafs()
        for node in computing:
            # What writes into a result is placed together with it.
            if (node.root is node or node.root.is_leaf) and not self._decide(node):
                self.open.append(node)
        if self.open:
            self._expand(computing)
        for node in self.open:
            if node not in self.result.nodes:
                self._place_by_bytes(node)
        return self.result

    # -- weights and states ----------------------------------------------------------------------------------------

    def _place_leafs(self) -> None:
        for leaf in self.graph.leafs:
            if leaf.role in ("weight", "state"):
                self.result.homes[leaf] = self._home(leaf)

    def _home(self, leaf: Tensor) -> Placement:
        default = Placement(
            self.hosts[0], "its data is on the host" if leaf.role == "weight" else "states are on the host"
        )
        told = self._told(leaf, self.rules)
        if told is None:
            return default
        refused = self._cannot_write(leaf, told.backend.memory)
        return told if refused is None else Placement(default.backend, default.reason, (f"{told.reason}: {refused}",))

    def _cannot_write(self, root: Tensor, memory: str) -> str | None:
        """Why some node that writes into `root` could not run on that memory; what writes runs where the memory is."""
        for node in self.writers.get(root, ()):
            answers = [(backend.name, backend.supports(node)) for backend in self.backends if backend.memory == memory]
            if not any(answer for _, answer in answers):
                name, answer = answers[0]
                return f"{name} cannot write it: {answer.reason}"
        return None

    def _told(self, tensor: Tensor, rules: Sequence[Rule]) -> Placement | None:
        """What the user or a rule says of a tensor."""
        name = self.assigned.get(tensor)
        if name is not None:
            if name not in self.by_name:
                known = ", ".join(self.by_name)
                raise SettingsError(
                    f'[placement] {tensor!r} is assigned to "{name}", which is no backend; there are: {known}'
                )
            return Placement(self.by_name[name], "assigned by the user", told=True)
        # A state has one home for all graphs, whatever their phase: its bytes do not move between runs.
        phase = None if tensor.role == "state" else self.graph.phase
        rule = first_match(rules, tensor, phase) if rules else None
        return None if rule is None else Placement(self.by_name[rule.backend], f'override "{rule.text}"', told=True)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _decide(self, node: Tensor) -> bool:
        """Place a node that something decides: the user, what it writes, or the matrix that it multiplies with."""
        told = self._told(node, self.node_rules)
        written = self.result.homes[node.root] if node.is_view else None
        if told is not None and written is not None and told.backend.memory != written.backend.memory:
            self._reject(node, f"{told.reason}: it writes {node.root.name}, which is on {written.backend.name}")
        elif told is not None and self._take(node, [told.backend], told.reason):
            return True
        if written is not None:
            return self._take_in(node, written)
        matrix = _matrix(node)
        if matrix is None:
            return False
        home = self.result.homes[matrix]
        return (home.backend.memory == HOST and self._offload(node)) or self._take_in(node, home, matrix)

    def _offload(self, node: Tensor) -> bool:
        for device in self.devices:
            wanted = device.wants(node, self.settings)
            if not wanted:
                self._reject(node, f"{device.name}: not offloaded: {wanted.reason}")
            elif self._take(node, [device], f"offloaded: {wanted.reason}"):
                self.result.nodes[node] = replace(self.result.nodes[node], offloaded=True)
                return True
        return False

    def _take_in(self, node: Tensor, home: Placement, matrix: Tensor | None = None) -> bool:
        """Place a node in the memory of its matrix, or of the state it writes, where told on that very backend."""
        where = "the host" if home.backend.memory == HOST else home.backend.memory
        verb = f"writes {node.root.name}, which" if matrix is None else f"weight {matrix.name}"
        candidates = [backend for backend in self.backends if backend.memory == home.backend.memory]
        if home.told:
            candidates.sort(key=lambda backend: backend is not home.backend)
        return self._take(node, candidates, home.reason if home.told else f"{verb} is on {where}")

    def _take(self, node: Tensor, candidates: Iterable[Backend], reason: str) -> bool:
        """Place a node, and what writes into its result, on the first candidate that supports it."""
        passed = ""
        for backend in candidates:
            answer = backend.supports(node)
            refused = self._cannot_write(node, backend.memory) if answer and node in self.writers else None
            if answer and refused is None:
                said = f"{reason}; {answer.reason}" if answer.reason else reason
                said += passed
                self.result.nodes[node] = Placement(backend, said, tuple(self.rejected.get(node, ())))
                for writer in self.writers.get(node, ()):
                    beside = [other for other in self.backends if other.memory == backend.memory]
                    self._take(writer, beside, f"writes {node.name}, which is on {backend.name}")
                return True
            passed += f"; not on {backend.name}: {refused or answer.reason}"
            remedy = f" ({answer.remedy})" if answer.remedy else ""
            self._reject(node, f"{backend.name}: {refused or answer.reason}{remedy}")
        return False

    def _reject(self, node: Tensor, words: str) -> None:
        said = self.rejected.setdefault(node, [])
        if words not in said:
            said.append(words)

    # -- the rest --------------------------------------------------------------------------------------------------

    def _expand(self, computing: list[Tensor]) -> None:
        """Let each run of open nodes stay with its neighbours; between two memories it is cut where few bytes cross."""
        users = users_of(computing)
        run: list[Tensor] = []
        before: Tensor | None = None
        for node in [*computing, None]:
            if node is not None and node not in self.result.nodes:
                # What writes into a result goes where that is.
                if not node.is_view:
                    run.append(node)
                continue
            if run:
                self._join(run, before, node, users)
            run, before = [], node

    def _join(self, run: list[Tensor], before: Tensor | None, after: Tensor | None, users: Users) -> None:
        """Give a run of open nodes the backend of the node before it, or after it, or part it between them."""
        left, right = (None if node is None else self.result.nodes[node].backend for node in (before, after))
        cut = 0 if left is None else len(run)
        if left is not None and right is not None and left.memory != right.memory:
            cut = best_cut(run, left.memory, right.memory, self._memory_now, users)
        for neighbours, part, backend in ((before, run[:cut], left), (after, run[cut:], right)):
            if neighbours is not None and backend is not None:
                candidates = self.hosts if backend.memory == HOST else [backend]
                for node in part:
                    self._take(node, candidates, f"stays with its neighbour {neighbours.name}")

    def _memory_now(self, tensor: Tensor) -> str | None:
        """The memory of a tensor, or None while that is open."""
        is_open = not tensor.root.is_leaf and tensor.root not in self.result.nodes
        return None if is_open else self.result.memory_of(tensor)

    def _place_by_bytes(self, node: Tensor) -> None:
        """Place a node that has no placed neighbour: where most of its sources' bytes lie, or where it is supported."""
        held: dict[str, int] = {HOST: 0}
        for src in node.srcs:
            if src is not None:
                memory = self.result.memory_of(src)
                held[memory] = held.get(memory, 0) + src.nbytes
        memory = max(held, key=lambda name: held[name])
        beside = [backend for backend in self.backends if backend.memory == memory]
        if self._take(node, beside, f"its sources are on {'the host' if memory == HOST else memory}"):
            return
        if not self._take(node, self.backends, "the first that supports it"):
            op = node.op.name if node.op is not None else ""
            raise PlacementError(f"[{op}] no backend can run {node!r}: {'; '.join(self.rejected[node])}")


def _matrix(node: Tensor) -> Tensor | None:
    """The weight that decides where a node runs: its largest matrix. Vectors (norms, factors, sinks) decide nothing."""
    found: Tensor | None = None
    for src in node.srcs:
        if src is None or src.root.role != "weight" or src.rank < 2 or src.size == src.shape[-1]:
            continue
        if found is None or src.root.nbytes > found.nbytes:
            found = src.root
    return found
