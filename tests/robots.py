"""A small robot with all that a task may have: state, controls of its own, forces, randomization, noise."""

import numpy as np
import torch

from es_flipout import MujocoTask, register_task

ROBOT = """
<mujoco model="biped">
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="20 20 .1" friction="0.8"/>
    <body name="trunk" pos="0 0 .42">
      <freejoint name="root"/>
      <geom name="trunk" type="box" size=".15 .12 .06" mass="4"/>
      <site name="imu"/>
      <body name="left" pos="0 .14 0">
        <joint name="left_hip" axis="0 1 0" range="-1 1" damping=".5" armature=".01"/>
        <geom name="left_leg" type="capsule" size=".03" fromto="0 0 0 0 0 -.3" mass=".5" contype="0"
              conaffinity="0"/>
        <geom name="left_foot" type="sphere" size=".06" pos="0 0 -.34" mass=".2"/>
      </body>
      <body name="right" pos="0 -.14 0">
        <joint name="right_hip" axis="0 1 0" range="-1 1" damping=".5" armature=".01"/>
        <geom name="right_leg" type="capsule" size=".03" fromto="0 0 0 0 0 -.3" mass=".5" contype="0"
              conaffinity="0"/>
        <geom name="right_foot" type="sphere" size=".06" pos="0 0 -.34" mass=".2"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="left_hip" joint="left_hip" kp="30" ctrlrange="-1 1" forcerange="-20 20"/>
    <position name="right_hip" joint="right_hip" kp="30" ctrlrange="-1 1" forcerange="-20 20"/>
  </actuator>
  <sensor>
    <gyro name="gyro" site="imu"/>
    <velocimeter name="velocity" site="imu"/>
  </sensor>
  <keyframe>
    <key name="home" qpos="0 0 .42 1 0 0 0 .1 -.1" ctrl=".1 -.1"/>
  </keyframe>
</mujoco>
"""
PERIOD = 25
"""Env steps after which the phase begins anew."""


class Robot(MujocoTask):
    """Follows a commanded speed, on two legs, with actions that arrive a step late."""

    fields = ("qpos", "qvel", "sensordata")
    noise = 3
    action_range = (-np.ones(2), np.ones(2))

    def __init__(self, model=ROBOT, control_frequency=50, scale=0.5, spread=0.3):
        super().__init__(model, control_frequency=control_frequency, keyframe="home")
        self.scale, self.spread = scale, spread
        self.trunk = self.body("trunk")
        self.gyro, self.velocity = self.sensor("gyro"), self.sensor("velocity")
        self.feet = self.touching(["left_foot", "right_foot"], "floor")
        self.unit = np.zeros((1, self.model.nbody, 6))
        self.unit[0, self.trunk, :2] = 1, 0.7

    def initial_state(self, rng):
        qpos = self.init_qpos.copy()
        qpos[7:] += rng.uniform(-0.1, 0.1, 2)
        state = {
            "command": rng.uniform(-0.5, 0.5),
            "phase": rng.integers(PERIOD),
            "actions": np.zeros((2, 2)),  # the last two
            "push": 0.0,
        }
        return qpos, self.init_qvel, state

    def randomize(self, rng):
        model, spread = self.model, self.spread
        scale = lambda shape: rng.uniform(1 - spread, 1 + spread, shape)  # noqa: E731
        gain = scale((2, 1))
        return {
            "body_mass": model.body_mass * scale(model.nbody),
            "geom_friction": model.geom_friction * scale((model.ngeom, 1)),
            "actuator_gainprm": model.actuator_gainprm * gain,
            "actuator_biasprm": model.actuator_biasprm * gain,
            "push": rng.uniform(0, 20),
        }

    def control(self, fields, actions):
        delayed = fields["actions"][:, 0]
        pushed = (fields["phase"] == 0) * fields["push"]
        return {
            "ctrl": self.constant(self.init_ctrl, delayed) + self.scale * delayed,
            "xfrc_applied": pushed.view(-1, 1, 1) * self.constant(self.unit, delayed),
        }

    def update_state(self, fields, actions):
        past = fields["actions"]
        return {
            "actions": torch.stack([actions.to(past), past[:, 0]], dim=1),
            "phase": torch.where(fields["phase"] >= PERIOD - 1, 0.0, fields["phase"] + 1),
        }

    def observe(self, fields):
        angle = fields["phase"] * (2 * np.pi / PERIOD)
        gyro = fields["sensordata"][:, self.gyro] + 0.1 * fields["noise"]
        return (
            fields["command"],
            angle.cos(),
            fields["qpos"][:, 2:],
            gyro,
            fields["actions"],
            fields["sensordata"][:, self.feet] > 0,
        )

    def locate(self, fields):
        return fields["qpos"][:, :2]

    def reward(self, before, after, fields, actions):
        speed = (after - before)[:, 0] / self.dt
        error = (speed - fields["command"]).square()
        change = (actions - fields["actions"][:, 0]).square().sum(dim=1)
        return torch.exp(-4 * error) - 0.01 * change, {"speed_error": error}

    def terminated(self, fields):
        return fields["qpos"][:, 2] < 0.25


register_task("Robot-v0", Robot, max_episode_steps=60)
