"""The trainer's clients: a pure core, and a synchronous and an asyncio pump around it."""

from .asynchronous import AsyncClient
from .client import Client
from .sampling import Batch

__all__ = ["AsyncClient", "Batch", "Client"]
