# Everything: a bucket, who may use it, images, the service, a Dask cluster and a GPU queue beside it.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

provider "aws" {
  region = var.region
}

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

locals {
  cube_urls = [for prefix in var.cube_prefixes : "s3://${module.storage.bucket}/${prefix}"]
  runs_url  = "s3://${module.storage.bucket}/runs"
}

module "naming" {
  source = "../../modules/naming"

  name        = var.name
  environment = var.environment
  account_id  = data.aws_caller_identity.this.account_id
}

module "policies" {
  source = "../../modules/policies"

  bucket              = module.naming.bucket
  partition           = data.aws_partition.this.partition
  cube_prefixes       = var.cube_prefixes
  reading             = var.reading
  kms_key_arn         = var.kms_key_arn
  github_repository   = var.github_repository
  github_provider_arn = "arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}:oidc-provider/token.actions.githubusercontent.com"
}

module "sizing" {
  source = "../../modules/sizing"

  worker_size = var.worker_size
  n_workers   = max(1, var.n_workers)
  n_items     = var.n_items
  trainer     = var.trainer
}

module "storage" {
  source = "../../modules/storage"

  bucket           = module.naming.bucket
  log_bucket       = module.naming.log_bucket
  bucket_policy    = module.policies.bucket_policy
  reading          = var.reading
  kms_key_arn      = var.kms_key_arn
  archive_prefixes = ["archives"]
  tags             = module.naming.tags
}

module "access" {
  source = "../../modules/access"

  prefix            = module.naming.prefix
  partition         = data.aws_partition.this.partition
  policies          = module.policies.roles
  service_trust     = module.policies.service_trust
  github_repository = var.github_repository
  github_trust      = module.policies.github_trust

  create_github_provider = var.create_github_provider
  tags                   = module.naming.tags
}

module "registry" {
  source = "../../modules/registry"

  prefix = module.naming.prefix
  tags   = module.naming.tags
}

module "network" {
  source = "../../modules/network"

  prefix             = module.naming.prefix
  region             = var.region
  availability_zones = var.availability_zones
  flow_log_trust     = module.policies.service_trust["vpc-flow-logs"]
  tags               = module.naming.tags
}

module "service" {
  source = "../../modules/service"
  count  = var.serve ? 1 : 0

  prefix             = module.naming.prefix
  region             = var.region
  cube_urls          = local.cube_urls
  image              = "${module.registry.repositories["service"]}:${var.image_tag}"
  replica            = module.sizing.replica
  certificate_arn    = var.certificate_arn
  protected          = var.environment == "prod"
  task_role_arn      = module.access.task_role_arns["reader"]
  execution_role_arn = module.access.execution_role_arn
  vpc_id             = module.network.vpc_id
  cidr               = module.network.cidr
  private_subnet_ids = module.network.private_subnet_ids
  public_subnet_ids  = module.network.public_subnet_ids
  s3_prefix_list_id  = module.network.s3_prefix_list_id
  log_bucket         = module.storage.log_bucket
  tags               = module.naming.tags
}

module "dask" {
  source = "../../modules/dask"

  prefix             = module.naming.prefix
  region             = var.region
  image              = "${module.registry.repositories["worker"]}:${var.image_tag}"
  worker             = module.sizing.worker
  ingest             = module.sizing.ingest
  n_workers          = var.n_workers
  reader_role_arn    = module.access.task_role_arns["reader"]
  publisher_role_arn = module.access.task_role_arns["publisher"]
  execution_role_arn = module.access.execution_role_arn
  vpc_id             = module.network.vpc_id
  cidr               = module.network.cidr
  private_subnet_ids = module.network.private_subnet_ids
  s3_prefix_list_id  = module.network.s3_prefix_list_id
  tags               = module.naming.tags
}

module "training" {
  source = "../../modules/training"

  prefix               = module.naming.prefix
  region               = var.region
  image                = "${module.registry.repositories["train"]}:${var.image_tag}"
  cube_url             = local.cube_urls[0]
  runs_url             = local.runs_url
  trainer              = module.sizing.trainer
  task_role_arn        = module.access.task_role_arns["trainer"]
  execution_role_arn   = module.access.execution_role_arn
  instance_profile_arn = module.access.instance_profile_arn
  vpc_id               = module.network.vpc_id
  cidr                 = module.network.cidr
  private_subnet_ids   = module.network.private_subnet_ids
  s3_prefix_list_id    = module.network.s3_prefix_list_id
  tags                 = module.naming.tags
}

module "observability" {
  source = "../../modules/observability"

  prefix       = module.naming.prefix
  project      = var.name
  region       = var.region
  mail         = var.mail
  budget_usd   = var.budget_usd
  service      = one([for s in module.service : { load_balancer = s.load_balancer, target_group = s.target_group }])
  dask_cluster = module.dask.cluster
  tags         = module.naming.tags
}
