"""rollmq's processes: broker, stage workers, inference router, backends, and the tasks they host."""
