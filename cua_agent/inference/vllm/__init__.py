"""Inference on vLLM servers: the engine, live weight updates, the canary, and `python -m cua_agent.inference.vllm`."""
