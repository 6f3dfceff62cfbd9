output "scheduler" {
  description = "Address for --scheduler, from inside the network."
  value       = local.scheduler
}

output "cluster" {
  description = "Name of the ECS cluster."
  value       = aws_ecs_cluster.this.name
}

output "task_definition" {
  description = "Task that holds `bec`, to run an ingest next to the cluster."
  value       = aws_ecs_task_definition.this["worker"].arn
}

output "security_group_id" {
  description = "Of scheduler and workers."
  value       = aws_security_group.this.id
}
