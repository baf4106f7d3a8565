"""The trainer's clients: a pure core, and a synchronous and an asyncio pump around it."""

from .asynchronous import AsyncClient
from .client import Client

__all__ = ["AsyncClient", "Client"]
