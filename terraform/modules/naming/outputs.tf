output "prefix" {
  description = "Begins the name of every resource."
  value       = local.prefix
}

output "bucket" {
  description = "Name of the bucket that holds the cubes."
  value       = local.bucket
}

output "log_bucket" {
  description = "Name of the bucket that takes its access logs."
  value       = "${local.bucket}-logs"
}

output "tags" {
  description = "Tags of every resource."
  value = tomap(merge(var.tags, {
    Project     = var.name
    Environment = var.environment
    ManagedBy   = "terraform"
  }))
}
