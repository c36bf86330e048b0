"""An arm that brings its fingertip to a goal, as FetchReach does: goals, dense rewards, success as a metric.

    es-train --config examples/reach/reach.yaml
    es-eval runs/reach --video reach.mp4

The goal is drawn at the start of each episode. `info["success"]` says whether the fingertip is within 2 cm of
it, and `evaluation.info` makes that a metric of the score.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from es_flipout import MujocoTask, register_task

MODEL = Path(__file__).with_name("arm.xml")
LOWEST, HIGHEST = np.array([0.2, -0.25, 0.05]), np.array([0.45, 0.25, 0.35])
"""Corners of the box that goals are in, in meters."""
NEAR = 0.02
JOINTS = 5


class Reach(MujocoTask):
    """Goals for a fingertip; actions change the targets of five joints."""

    fields = ("qpos", "qvel", "site_xpos")
    action_range = (-np.ones(JOINTS), np.ones(JOINTS))

    def __init__(self, speed: float = 0.2) -> None:
        super().__init__(MODEL, control_frequency=25, keyframe="home")
        self.speed = speed  # largest change of a target in a step, in radians
        self.fingertip = self.site("fingertip")
        self.lowest, self.highest = self.model.actuator_ctrlrange.T.copy()

    def initial_state(self, rng):
        qpos = self.init_qpos.copy()
        qpos[:JOINTS] += rng.uniform(-0.2, 0.2, JOINTS)
        qpos[JOINTS:] = rng.uniform(LOWEST, HIGHEST)
        return qpos, self.init_qvel, {"targets": qpos[:JOINTS]}

    def update_state(self, fields, actions):
        return {"targets": self.moved(fields, actions)}

    def moved(self, fields, actions):
        """Returns the targets of the joints after an action, [N, 5]."""
        targets = fields["targets"] + self.speed * actions
        lowest, highest = (self.constant(each, targets) for each in (self.lowest, self.highest))
        return torch.maximum(torch.minimum(targets, highest), lowest)

    def control(self, fields, actions):
        return self.moved(fields, actions)

    def to_goal(self, fields):
        """Returns where the goal is from the fingertip, [N, 3]."""
        return fields["qpos"][:, JOINTS:] - fields["site_xpos"][:, self.fingertip]

    def observe(self, fields):
        return (
            fields["qpos"],
            0.1 * fields["qvel"][:, :JOINTS],
            fields["targets"] - fields["qpos"][:, :JOINTS],
            10 * self.to_goal(fields),
        )

    def reward(self, before, after, fields, actions):
        distance = self.to_goal(fields).square().sum(dim=1).sqrt()
        success = (distance < NEAR).to(distance)
        return -10 * distance + success, {"success": success, "distance": distance}


register_task("Reach-v0", Reach, max_episode_steps=50)
