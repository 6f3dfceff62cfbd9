output "worker" {
  description = "CPU units, MiB and threads of a Dask worker."
  value       = local.worker
}

output "ingest" {
  description = "CPU units and MiB of `bec ingest`, which reads tars with a thread a core."
  value       = { cpu = local.workers.large.cpu, memory_mib = local.workers.large.memory_mib }
}

output "n_workers" {
  description = "Dask workers."
  value       = var.n_workers
}

output "replica" {
  description = "CPU units and MiB of a replica of the service."
  value       = { cpu = local.replica_cpu, memory_mib = local.replica_memory_mib }
}

output "trainer" {
  description = "Instance type that trains, and what a job takes of it."
  value       = merge(local.trainers[var.trainer], { instance_type = var.trainer })
}
