"""rollmq's processes: broker, stage workers, router, backends, and the tasks they host."""
