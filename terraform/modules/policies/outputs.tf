output "roles" {
  description = "Policy documents (JSON) of the reader, the publisher and the trainer."
  value = {
    for role, statements in local.statements : role => jsonencode({
      Version   = "2012-10-17"
      Statement = statements
    })
  }
}

output "bucket_policy" {
  description = "Policy of the bucket itself (JSON): no plain HTTP, and who else may read."
  value = jsonencode({
    Version   = "2012-10-17"
    Statement = concat([local.only_tls], local.readers[var.reading])
  })
}

output "github_trust" {
  description = "Trust policy (JSON) of the role that GitHub workflows take, or null."
  value = var.github_repository == null ? null : jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Federated = var.github_provider_arn }
      Action    = "sts:AssumeRoleWithWebIdentity"
      Condition = {
        StringEquals = {
          "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
          "token.actions.githubusercontent.com:sub" = "repo:${var.github_repository}:ref:${var.github_ref}"
        }
      }
    }]
  })
}

output "service_trust" {
  description = "Trust policies (JSON) by AWS service that takes a role."
  value = {
    for name in ["ecs-tasks", "ec2", "vpc-flow-logs"] : name => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Principal = { Service = "${name}.amazonaws.com" }
        Action    = "sts:AssumeRole"
      }]
    })
  }
}
