output "address" {
  description = "Where the load balancer answers; the certificate's domain points here."
  value       = aws_lb.this.dns_name
}

output "zone_id" {
  description = "Its hosted zone, for an alias record."
  value       = aws_lb.this.zone_id
}

output "load_balancer" {
  description = "Its name in metrics."
  value       = aws_lb.this.arn_suffix
}

output "target_group" {
  description = "The replicas' name in metrics."
  value       = aws_lb_target_group.this.arn_suffix
}
