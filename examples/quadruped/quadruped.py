"""A quadruped that walks at commanded speeds, from MJCF to a film.

    es-train --config examples/quadruped/quadruped.yaml
    es-eval runs/quadruped --video quadruped.mp4

Twelve position actuators hold the joints (PD control). Their targets are the home pose, a trot that lifts
diagonal legs by turns, and what the policy adds. 50 times per second the policy chooses how far the trot
strides and turns, and an offset for each joint (policies that modulate trajectory generators: Iscen et al.,
2018, arXiv 1910.02812). A command is a forward speed and a turning rate; each episode has two of them.
Episodes are randomized: masses, friction, gains, the delay of actions, pushes, and noise on what the robot
measures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from es_flipout import MujocoTask, register_task

MODEL = Path(__file__).with_name("quadruped.xml")
LEGS = ["FL", "FR", "RL", "RR"]
EPISODE, PERIOD = 500, 20
"""Env steps: 10 seconds, and 0.4 seconds from step to step of a foot."""
FASTEST = np.array([0.8, 0.8])
"""Largest command: forward speed in m/s, turning rate in rad/s."""


class Quadruped(MujocoTask):
    """Follows commands; on every engine, for all envs at once."""

    fields = ("qpos", "qvel", "sensordata")
    action_range = (-np.ones(14), np.ones(14))  # twelve joints, stride and turn
    noise = 30

    def __init__(self, reach: float = 0.3) -> None:
        super().__init__(MODEL, control_frequency=50, keyframe="home")
        self.reach = reach  # of a target from the home pose, in radians
        self.gyro, self.up, self.velocity = map(self.sensor, ("gyro", "upvector", "velocity"))
        self.feet = self.touching(LEGS, "floor")
        self.lift = np.zeros((2, 4, 3))  # of thigh and shank, for each pair of diagonal legs, in radians
        self.lift[[[0], [1]], [[0, 3], [1, 2]], 1:] = 0.3, -0.6
        self.lift = self.lift.reshape(2, 12)
        self.stride = np.zeros((2, 4, 3))  # of the thighs, forward and to turn, in radians
        self.stride[:, :, 1] = 0.8 * np.array([[1, -1, -1, 1], [-1, -1, 1, 1]])
        self.stride = self.stride.reshape(2, 12)
        self.push_per_unit = np.zeros((2, self.model.nbody, 6))  # unit forces on the trunk
        self.push_per_unit[[0, 1], self.body("trunk"), [0, 1]] = 1

    def initial_state(self, rng):
        qpos = self.init_qpos.copy()
        qpos[7:] += rng.uniform(-0.1, 0.1, 12)
        commands = rng.uniform([-0.4, -FASTEST[1]], FASTEST, (2, 2))
        commands[rng.random(2) < 0.1] = 0  # to stand
        state = {
            "commands": commands,
            "step": 0,
            "average": np.zeros(2),  # speed and turning rate, over about a stride
            "actions": np.zeros((2, 14)),  # the last two
            "delay": 0.0,  # share of the action before the last
            "push": np.zeros(2),  # newtons
            "push_step": 0,
        }
        return qpos, self.init_qvel, state

    def randomize(self, rng):
        model = self.model
        mass, gain = np.ones(model.nbody), rng.uniform(0.85, 1.15, (12, 1))
        mass[self.body("trunk")] = rng.uniform(0.8, 1.4)
        angle = rng.uniform(0, 2 * np.pi)
        return {
            "body_mass": model.body_mass * mass,
            "body_inertia": model.body_inertia * mass[:, np.newaxis],
            "geom_friction": model.geom_friction * rng.uniform(0.5, 1.2),
            "actuator_gainprm": model.actuator_gainprm * gain,
            "actuator_biasprm": model.actuator_biasprm * gain,
            "delay": rng.uniform(0, 1),
            "push": rng.uniform(0, 80) * np.array([np.cos(angle), np.sin(angle)]),
            "push_step": rng.integers(50, EPISODE),
        }

    def control(self, fields, actions):
        delay = fields["delay"].unsqueeze(1)
        applied = (1 - delay) * actions + delay * fields["actions"][:, 0]
        is_pushed = (fields["step"] - fields["push_step"]).abs() < 3  # for a tenth of a second
        push = (fields["push"] * is_pushed.unsqueeze(1)).view(-1, 2, 1, 1)
        return {
            "ctrl": self.trot(fields, applied[:, 12:]) + self.reach * applied[:, :12],
            "xfrc_applied": (push * self.constant(self.push_per_unit, push)).sum(dim=1),
        }

    def trot(self, fields, strides):
        """Returns targets of the joints, [N, 12], at the home pose or trotting."""
        lifts, swings = self.clock(fields)[:, :1], self.clock(fields)[:, 1:]
        lifts = torch.cat([lifts, -lifts], dim=1).clamp(min=0) @ self.constant(self.lift, lifts)
        return (
            self.constant(self.init_ctrl, lifts)
            + lifts
            + swings * strides @ self.constant(self.stride, lifts)
        )

    def update_state(self, fields, actions):
        past = fields["actions"]
        return {
            "step": fields["step"] + 1,
            "average": self.average(fields),
            "actions": torch.stack([actions.to(past), past[:, 0]], dim=1),
        }

    def average(self, fields):
        """Returns forward speed and turning rate, averaged over the last steps, [N, 2]."""
        sensors, past = fields["sensordata"], fields["average"]
        now = torch.stack([sensors[:, self.velocity][:, 0], sensors[:, self.gyro][:, 2]], dim=1)
        return past + (now - past) * (2 / PERIOD)

    def command(self, fields):
        """Returns the forward speed and the turning rate that are asked for now, [N, 2]."""
        is_first = (fields["step"] < EPISODE / 2).unsqueeze(1)
        return torch.where(is_first, fields["commands"][:, 0], fields["commands"][:, 1])

    def clock(self, fields):
        """Returns sine and cosine of the phase of the gait, [N, 2]; it stands if the robot is to stand."""
        phase = fields["step"] * (2 * np.pi / PERIOD)
        moves = (self.command(fields).abs().amax(dim=1) > 0.01).unsqueeze(1)
        return torch.stack([phase.sin(), phase.cos()], dim=1) * moves

    def observe(self, fields):
        sensors, noise = fields["sensordata"], fields["noise"]
        command, clock = self.command(fields), self.clock(fields)
        return (
            command,
            clock,
            clock * command[:, :1],
            clock * command[:, 1:],
            sensors[:, self.gyro] + 0.2 * noise[:, :3],
            sensors[:, self.up] + 0.05 * noise[:, 3:6],
            fields["qpos"][:, 7:] - self.constant(self.init_qpos[7:], noise) + 0.02 * noise[:, 6:18],
            0.1 * (fields["qvel"][:, 6:] + 0.5 * noise[:, 18:]),
            fields["actions"].flatten(1),
        )

    def reward(self, before, after, fields, actions):
        sensors, command, clock = fields["sensordata"], self.command(fields), self.clock(fields)
        speed, turn = sensors[:, self.velocity], sensors[:, self.gyro]
        error = (self.average(fields) - command).abs()  # over a stride
        speed_follows = torch.exp(-10 * (speed[:, 0] - command[:, 0]).square())
        turn_follows = torch.exp(-10 * error[:, 1].square())
        drift = speed[:, 1].square() + speed[:, 2].square() + 0.05 * turn[:, :2].square().sum(dim=1)
        on_floor = (sensors[:, self.feet] > 0).to(clock)
        first, second = (on_floor[:, 0] + on_floor[:, 3]) / 2, (on_floor[:, 1] + on_floor[:, 2]) / 2
        trots = clock[:, 0] * (second - first)  # diagonal legs take turns
        effort = (actions - fields["actions"][:, 0]).square().mean(dim=1)
        tilt = 1 - sensors[:, self.up][:, 2]
        reward = 0.5 + speed_follows + 0.7 * turn_follows - drift - tilt + 0.2 * trots - 0.1 * effort
        return reward, {"speed_error": error[:, 0], "turn_error": error[:, 1]}

    def terminated(self, fields):
        return (fields["sensordata"][:, self.up][:, 2] < 0.5) | (fields["qpos"][:, 2] < 0.14)


register_task("Quadruped-v0", Quadruped, max_episode_steps=EPISODE)
