# A private Dask cluster for ingest and loading: one scheduler, workers on spot capacity. A worker that
# is taken away costs the shard or the blocks it was at. Beside it runs `bec ingest`, a task by itself.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

locals {
  name      = "${var.prefix}-dask"
  port      = 8786
  domain    = "${local.name}.internal"
  scheduler = "tcp://scheduler.${local.domain}:${local.port}"
  # Workers are called by the scheduler, by clients and by each other.
  worker_ports = { from = 9000, to = 9099 }
  nanny_ports  = { from = 9100, to = 9199 }
  inside = {
    scheduler = { from = local.port, to = local.port }
    workers   = local.worker_ports
    nannies   = local.nanny_ports
  }

  containers = {
    scheduler = {
      role    = var.reader_role_arn
      cpu     = 1024
      memory  = 4096
      command = ["dask", "scheduler", "--port", tostring(local.port), "--no-dashboard"]
    }
    worker = {
      role   = var.publisher_role_arn
      cpu    = var.worker.cpu
      memory = var.worker.memory_mib
      command = [
        "dask", "worker", local.scheduler, "--nthreads", tostring(var.worker.threads), "--no-dashboard",
        "--worker-port", "${local.worker_ports.from}:${local.worker_ports.to}",
        "--nanny-port", "${local.nanny_ports.from}:${local.nanny_ports.to}", "--local-directory", "/tmp", "--death-timeout", "120",
      ]
    }
    ingest = {
      role    = var.publisher_role_arn
      cpu     = var.ingest.cpu
      memory  = var.ingest.memory_mib
      command = ["bec", "--help"]
    }
  }
}

resource "aws_ecs_cluster" "this" {
  name = local.name
  tags = var.tags

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  cluster_name       = aws_ecs_cluster.this.name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]
}

resource "aws_service_discovery_private_dns_namespace" "this" {
  name = local.domain
  vpc  = var.vpc_id
  tags = var.tags
}

resource "aws_service_discovery_service" "scheduler" {
  name = "scheduler"
  tags = var.tags

  dns_config {
    namespace_id = aws_service_discovery_private_dns_namespace.this.id

    dns_records {
      type = "A"
      ttl  = 10
    }
  }
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_158:keys of objects and rows, no secret
  name              = "/${var.prefix}/dask"
  retention_in_days = 365
  tags              = var.tags
}

resource "aws_ecs_task_definition" "this" {
  for_each = local.containers

  family                   = "${local.name}-${each.key}"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = each.value.cpu
  memory                   = each.value.memory
  task_role_arn            = each.value.role
  execution_role_arn       = var.execution_role_arn
  tags                     = var.tags

  volume {
    name = "scratch"
  }

  container_definitions = jsonencode([{
    name                   = each.key
    image                  = var.image
    command                = each.value.command
    essential              = true
    readonlyRootFilesystem = true
    user                   = "10001"
    mountPoints            = [{ sourceVolume = "scratch", containerPath = "/tmp", readOnly = false }]
    environment            = [{ name = "AWS_REGION", value = var.region }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = var.region
        awslogs-stream-prefix = each.key
      }
    }
  }])
}

resource "aws_ecs_service" "scheduler" {
  name            = "scheduler"
  cluster         = aws_ecs_cluster.this.id
  task_definition = aws_ecs_task_definition.this["scheduler"].arn
  launch_type     = "FARGATE"
  desired_count   = 1
  propagate_tags  = "SERVICE"
  tags            = var.tags

  network_configuration {
    subnets          = var.private_subnet_ids
    security_groups  = [aws_security_group.this.id]
    assign_public_ip = false
  }

  service_registries {
    registry_arn = aws_service_discovery_service.scheduler.arn
  }
}

resource "aws_ecs_service" "worker" {
  name            = "worker"
  cluster         = aws_ecs_cluster.this.id
  task_definition = aws_ecs_task_definition.this["worker"].arn
  desired_count   = var.n_workers
  propagate_tags  = "SERVICE"
  tags            = var.tags

  capacity_provider_strategy {
    capacity_provider = var.spot ? "FARGATE_SPOT" : "FARGATE"
    weight            = 1
  }

  network_configuration {
    subnets          = var.private_subnet_ids
    security_groups  = [aws_security_group.this.id]
    assign_public_ip = false
  }

  depends_on = [aws_ecs_cluster_capacity_providers.this]
}

resource "aws_security_group" "this" {
  name        = local.name
  description = "Scheduler and workers among themselves; clients inside the network; out to S3 and AWS endpoints."
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  security_group_id = aws_security_group.this.id
  description       = "Clients inside the network to the scheduler."
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = local.port
  to_port           = local.port
}

resource "aws_vpc_security_group_ingress_rule" "results" {
  security_group_id = aws_security_group.this.id
  description       = "Clients inside the network to the workers, for what they have read."
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = local.worker_ports.from
  to_port           = local.worker_ports.to
}

resource "aws_vpc_security_group_ingress_rule" "among" {
  for_each = local.inside

  security_group_id            = aws_security_group.this.id
  description                  = "Among themselves: ${each.key}."
  referenced_security_group_id = aws_security_group.this.id
  ip_protocol                  = "tcp"
  from_port                    = each.value.from
  to_port                      = each.value.to
}

resource "aws_vpc_security_group_egress_rule" "among" {
  for_each = local.inside

  security_group_id            = aws_security_group.this.id
  description                  = "Among themselves: ${each.key}."
  referenced_security_group_id = aws_security_group.this.id
  ip_protocol                  = "tcp"
  from_port                    = each.value.from
  to_port                      = each.value.to
}

resource "aws_vpc_security_group_egress_rule" "s3" {
  security_group_id = aws_security_group.this.id
  description       = "HTTPS to S3."
  prefix_list_id    = var.s3_prefix_list_id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "endpoints" {
  security_group_id = aws_security_group.this.id
  description       = "HTTPS to the endpoints inside the network."
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
