"""The arena of a rollout tree: every step stored once, a trajectory is a root-to-leaf view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from elpo.types import Localization, MessageStep, Outcome, Problem, Step

ROOT = -1
"""The parent of first steps: the prompt itself, which is not a node."""


@dataclass(frozen=True, eq=False)
class Node:
    """One step and the node it continues (`ROOT` for a first step)."""

    parent: int
    step: Step


@dataclass(eq=False)
class RolloutTree:
    """All rollouts of one problem. `nodes[i].parent < i`, so a recursion is one loop over the array.

    Trajectories share nodes only through forced prefixes; steps that merely read alike are never
    merged (paper, Fig. 4: nine first steps, nine nodes).
    """

    problem: Problem
    prompt_ids: np.ndarray  # int64 [P]
    policy_version: int = 0
    nodes: list[Node] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by leaf, in the order drawn
    localizations: list[Localization] = field(default_factory=list)

    def add(self, prefix: int, steps: Sequence[Step], outcome: Outcome) -> int:
        """Append a rollout that continued `prefix` and return its leaf's node id.

        Raises:
            ValueError: if there are no steps, or `prefix` is not a node that can be continued.
        """
        if not steps:
            raise ValueError("a rollout needs at least one step")
        if not (prefix == ROOT or (0 <= prefix < len(self.nodes) and prefix not in self.outcomes)):
            raise ValueError(f"cannot continue node {prefix}: it is a leaf or not in the tree")
        parent = prefix
        for step in steps:
            self.nodes.append(Node(parent, step))
            parent = len(self.nodes) - 1
        self.outcomes[parent] = outcome
        return parent

    @property
    def leaves(self) -> list[int]:
        """Leaf node ids in the order their rollouts were drawn."""
        return list(self.outcomes)

    def path(self, node: int) -> list[int]:
        """Node ids from the first step down to `node`; empty for `ROOT`."""
        path = []
        while node != ROOT:
            path.append(node)
            node = self.nodes[node].parent
        return path[::-1]

    def prefix(self, leaf: int) -> int:
        """The node that the rollout of `leaf` continued; `ROOT` where it was drawn from the prompt.

        The nodes of a rollout follow each other in the arena, and no rollout continues the node before it:
        that is a leaf.
        """
        node = leaf
        while self.nodes[node].parent == node - 1 != ROOT:
            node -= 1
        return self.nodes[node].parent

    def children(self) -> dict[int, list[int]]:
        """Children of every node that has any, `ROOT` included, in node order."""
        children: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            children.setdefault(node.parent, []).append(i)
        return children

    def depth_first(self) -> list[int]:
        """All nodes depth-first: a parent before its children, the first child with all below it first."""
        children = self.children()
        order: list[int] = []
        pending = children.get(ROOT, [])[::-1]
        while pending:
            order.append(node := pending.pop())
            pending += children.get(node, [])[::-1]
        return order

    def leaves_below(self) -> list[list[int]]:
        """For every node the leaves whose path contains it, in the order drawn."""
        below: list[list[int]] = [[] for _ in self.nodes]
        for leaf in self.outcomes:
            for node in self.path(leaf):
                below[node].append(leaf)
        return below

    def require_token_ids(self) -> None:
        """
        Raises:
            ValueError: a step is known only as messages, so the tree cannot be trained on.
        """
        if any(isinstance(node.step, MessageStep) for node in self.nodes):
            raise ValueError(
                f"the tree of problem {self.problem.id} was drawn as chat messages, without token ids: "
                "it can be searched and graded, but not trained on; sample from the model itself"
            )

    def context(self, node: int) -> np.ndarray:
        """Token ids the policy saw up to the end of `node`, prompt included. int64 [T]."""
        return np.concatenate([self.prompt_ids, *(self.nodes[i].step.token_ids for i in self.path(node))])
