output "cube_urls" {
  description = "For bec and training."
  value       = local.cube_urls
}

output "runs_url" {
  description = "For --out."
  value       = local.runs_url
}

output "repositories" {
  description = "Where images are pushed to."
  value       = module.registry.repositories
}

output "service_address" {
  description = "Where the certificate's domain must point; null while nothing is served."
  value       = one(module.service[*].address)
}

output "scheduler" {
  description = "For --scheduler, from inside the network."
  value       = module.dask.scheduler
}

output "ingest_task" {
  description = "How to run bec beside the cluster: cluster, task, subnets, security groups."
  value = {
    cluster         = module.dask.cluster
    task_definition = module.dask.ingest_task_definition
    subnets         = module.network.private_subnet_ids
    security_groups = [module.dask.security_group_id]
  }
}

output "job_queue" {
  description = "Queue of training jobs."
  value       = module.training.job_queue
}

output "job_definition" {
  description = "Definition of a training job."
  value       = module.training.job_definition
}

output "github_role_arn" {
  description = "Role for workflows that publish, or null."
  value       = module.access.github_role_arn
}
