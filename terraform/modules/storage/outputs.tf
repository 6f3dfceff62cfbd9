output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.cubes.id
}

output "bucket_arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.cubes.arn
}

output "log_bucket" {
  description = "Name of the bucket of access logs."
  value       = aws_s3_bucket.logs.id

  # Who sends logs is refused until the policy stands.
  depends_on = [aws_s3_bucket_policy.logs]
}
