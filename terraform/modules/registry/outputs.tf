output "repositories" {
  description = "Image (service, worker, train) to the URL that it is pushed to."
  value       = { for name, repository in aws_ecr_repository.image : name => repository.repository_url }
}
