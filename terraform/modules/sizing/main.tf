# How large every task is, in units that the platform takes.

terraform {
  required_version = ">= 1.9"
}

locals {
  # Fargate takes these pairs of CPU units and MiB among others. An ingest worker holds a shard of
  # every kind for each thread: 1.5 GB at most.
  workers = {
    small  = { cpu = 1024, memory_mib = 4096, threads = 1 }
    medium = { cpu = 2048, memory_mib = 8192, threads = 2 }
    large  = { cpu = 4096, memory_mib = 16384, threads = 4 }
  }
  worker = local.workers[var.worker_size]

  # Twice what it needs: the process, and 200 bytes for each item of the index.
  replica_memory_mib = max(2048, 1024 * ceil(2 * (var.n_items * 200 / 1048576 + 800) / 1024))
  # Fargate: with 1 vCPU 2 to 8 GiB, with 2 vCPU 4 to 16, with 4 vCPU 8 to 30.
  replica_cpu = local.replica_memory_mib <= 8192 ? 1024 : local.replica_memory_mib <= 16384 ? 2048 : 4096

  # One GPU; vCPUs decode, memory holds the pool and the host cache.
  trainers = {
    "g5.2xlarge"  = { vcpus = 8, memory_mib = 30000, gpus = 1 }
    "g6.4xlarge"  = { vcpus = 16, memory_mib = 61000, gpus = 1 }
    "g6e.4xlarge" = { vcpus = 16, memory_mib = 122000, gpus = 1 }
    "p5.4xlarge"  = { vcpus = 16, memory_mib = 245000, gpus = 1 }
  }
}
