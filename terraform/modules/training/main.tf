# A queue of GPU jobs on spot machines. A job that loses its machine is started again with --resume and
# goes on after the last step saved.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

locals {
  name = "${var.prefix}-train"
}

resource "aws_batch_compute_environment" "this" {
  name  = local.name
  type  = "MANAGED"
  state = "ENABLED"
  tags  = var.tags

  compute_resources {
    type                = var.spot ? "SPOT" : "EC2"
    allocation_strategy = var.spot ? "SPOT_PRICE_CAPACITY_OPTIMIZED" : "BEST_FIT_PROGRESSIVE"
    instance_type       = [var.trainer.instance_type]
    instance_role       = var.instance_profile_arn
    min_vcpus           = 0 # nothing runs, and costs, while the queue is empty
    max_vcpus           = var.trainer.vcpus * var.max_jobs
    subnets             = var.private_subnet_ids
    security_group_ids  = [aws_security_group.this.id]
    tags                = var.tags

    launch_template {
      launch_template_id = aws_launch_template.this.id
      version            = aws_launch_template.this.latest_version
    }
  }
}

resource "aws_launch_template" "this" {
  name                   = local.name
  update_default_version = true
  tags                   = var.tags

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type = "gp3"
      volume_size = 100
      encrypted   = true
    }
  }
}

resource "aws_batch_job_queue" "this" {
  name     = local.name
  state    = "ENABLED"
  priority = 1
  tags     = var.tags

  compute_environment_order {
    order               = 1
    compute_environment = aws_batch_compute_environment.this.arn
  }
}

resource "aws_batch_job_definition" "this" {
  name                  = local.name
  type                  = "container"
  platform_capabilities = ["EC2"]
  propagate_tags        = true
  tags                  = var.tags

  parameters = {
    cube   = var.cube_url
    recipe = "tb-cnn"
    out    = "${var.runs_url}/tb-cnn"
  }

  container_properties = jsonencode({
    image                  = var.image
    command                = ["fit", "Ref::cube", "--recipe", "Ref::recipe", "--out", "Ref::out", "--resume"]
    jobRoleArn             = var.task_role_arn
    executionRoleArn       = var.execution_role_arn
    readonlyRootFilesystem = true
    user                   = "10001"
    # torch.compile keeps what it compiles in /tmp, and loads it from there.
    linuxParameters = {
      sharedMemorySize = 8192
      tmpfs            = [{ containerPath = "/tmp", size = 4096, mountOptions = ["exec"] }]
    }
    environment = [{ name = "AWS_REGION", value = var.region }]
    resourceRequirements = [
      { type = "VCPU", value = tostring(var.trainer.vcpus) },
      { type = "MEMORY", value = tostring(var.trainer.memory_mib) },
      { type = "GPU", value = tostring(var.trainer.gpus) },
    ]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = var.region
        awslogs-stream-prefix = "train"
      }
    }
  })

  # Only a machine that was taken away is worth another try; a wrong recipe fails once.
  retry_strategy {
    attempts = 10

    evaluate_on_exit {
      action           = "RETRY"
      on_status_reason = "Host EC2*"
    }

    evaluate_on_exit {
      action    = "EXIT"
      on_reason = "*"
    }
  }

  timeout {
    attempt_duration_seconds = var.max_hours * 3600
  }
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_158:losses and rates, no secret
  name              = "/${var.prefix}/train"
  retention_in_days = 365
  tags              = var.tags
}

resource "aws_security_group" "this" {
  name        = local.name
  description = "Nothing in; out to S3, AWS endpoints and the Dask cluster."
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_egress_rule" "s3" {
  security_group_id = aws_security_group.this.id
  description       = "HTTPS to S3."
  prefix_list_id    = var.s3_prefix_list_id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "inside" {
  for_each = { https = [443, 443], scheduler = [8786, 8786], workers = [9000, 9099] }

  security_group_id = aws_security_group.this.id
  description       = "To ${each.key} inside the network."
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = each.value[0]
  to_port           = each.value[1]
}
