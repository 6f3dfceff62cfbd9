output "task_role_arns" {
  description = "Role (reader, publisher, trainer) to the ARN that tasks take."
  value       = { for name, role in aws_iam_role.task : name => role.arn }
}

output "execution_role_arn" {
  description = "What the platform takes to start a task."
  value       = aws_iam_role.execution.arn
}

output "instance_profile_arn" {
  description = "Profile of the machines of the GPU queue."
  value       = aws_iam_instance_profile.instance.arn
}

output "github_role_arn" {
  description = "Role of the workflows that publish, or null."
  value       = one(aws_iam_role.github[*].arn)
}
