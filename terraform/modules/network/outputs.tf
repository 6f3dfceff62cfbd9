output "vpc_id" {
  description = "The network."
  value       = aws_vpc.this.id
}

output "cidr" {
  description = "Its addresses."
  value       = aws_vpc.this.cidr_block
}

output "private_subnet_ids" {
  description = "Where tasks and GPU machines run."
  value       = [for subnet in aws_subnet.private : subnet.id]
}

output "public_subnet_ids" {
  description = "Where the load balancer stands."
  value       = [for subnet in aws_subnet.public : subnet.id]
}

output "s3_prefix_list_id" {
  description = "Addresses of S3, for rules that let tasks out to it and to nothing else."
  value       = aws_vpc_endpoint.s3.prefix_list_id
}
