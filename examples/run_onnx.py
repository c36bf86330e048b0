"""Plays a policy exported by `es-export RUN --to onnx`: python run_onnx.py policy.onnx."""

import json
import sys

import gymnasium
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["es_flipout"])
(observed,), states = about["observations"], about["states"]
env = gymnasium.make(about["env"], **about["config"]["env"]["kwargs"])
returns = []
for seed in range(5):
    observation, _ = env.reset(seed=seed)
    memory = {each["name"]: np.array([each["initial"]], each["dtype"]) for each in states}
    returns.append(0.0)
    done = False
    while not done:
        inputs = {observed["name"]: np.array([observation], observed["dtype"]), **memory}
        action, *following = session.run(None, inputs)
        memory = dict(zip(memory, following, strict=True))
        observation, reward, terminated, truncated, _ = env.step(action[0])
        returns[-1] += float(reward)
        done = terminated or truncated
print(f"{about['env']}: returns {[round(each, 3) for each in returns]}")
