# What everything is called: one prefix for all resources of a deployment, one set of tags.

terraform {
  required_version = ">= 1.9"
}

locals {
  prefix = "${var.name}-${var.environment}"

  # Bucket names are global: the account keeps two deployments of one name apart.
  bucket = "${local.prefix}-${var.account_id}"
}
