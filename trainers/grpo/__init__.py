"""The GRPO core: advantages, batching, loss; pure functions on tensors, and the plain learner."""
