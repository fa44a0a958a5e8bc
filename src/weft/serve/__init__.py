"""An OpenAI-compatible server: HTTP in one process, the engine's ranks in others.

Nothing in the HTTP process imports torch; engine_client.EngineClient is the seam between them.
"""
