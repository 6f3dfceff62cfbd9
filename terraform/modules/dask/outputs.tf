output "scheduler" {
  description = "Address for --scheduler, from inside the network."
  value       = local.scheduler
}

output "cluster" {
  description = "Name of the ECS cluster."
  value       = aws_ecs_cluster.this.name
}

output "ingest_task_definition" {
  description = "Task whose container `ingest` holds `bec`; it is given the command."
  value       = aws_ecs_task_definition.this["ingest"].arn
}

output "security_group_id" {
  description = "Of scheduler and workers."
  value       = aws_security_group.this.id
}
