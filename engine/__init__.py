"""rollmq's bus: records, wire, topology, ledger, journal and client; knows no LLM and no sandbox."""
