"""Backend kind `vllm`: one real server, existing or started here, behind the router."""
