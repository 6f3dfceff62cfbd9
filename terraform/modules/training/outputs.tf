output "job_queue" {
  description = "Name of the queue."
  value       = aws_batch_job_queue.this.name
}

output "job_definition" {
  description = "Name of the job definition; parameters cube, recipe and out."
  value       = aws_batch_job_definition.this.name
}
