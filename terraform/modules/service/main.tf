# The STAC API and the explorer: stateless replicas behind a load balancer. A replica reads the items
# from S3 when it starts and needs nothing else.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

locals {
  name = "${var.prefix}-service"
  port = 8080
}

resource "aws_ecs_cluster" "this" {
  name = local.name
  tags = var.tags

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = local.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.replica.cpu
  memory                   = var.replica.memory_mib
  task_role_arn            = var.task_role_arn
  execution_role_arn       = var.execution_role_arn
  tags                     = var.tags

  volume {
    name = "scratch"
  }

  container_definitions = jsonencode([{
    name                   = "service"
    image                  = var.image
    command                = concat(["serve"], var.cube_urls, ["--host", "0.0.0.0", "--port", tostring(local.port)])
    essential              = true
    readonlyRootFilesystem = true
    user                   = "10001"
    mountPoints            = [{ sourceVolume = "scratch", containerPath = "/tmp", readOnly = false }]
    portMappings           = [{ containerPort = local.port, protocol = "tcp" }]
    environment            = [{ name = "AWS_REGION", value = var.region }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = var.region
        awslogs-stream-prefix = "service"
      }
    }
  }])
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_158:requests to public metadata, no secret
  name              = "/${var.prefix}/service"
  retention_in_days = 365
  tags              = var.tags
}

resource "aws_ecs_service" "this" {
  name                               = local.name
  cluster                            = aws_ecs_cluster.this.id
  task_definition                    = aws_ecs_task_definition.this.arn
  launch_type                        = "FARGATE"
  desired_count                      = var.replicas.min
  deployment_minimum_healthy_percent = 100
  health_check_grace_period_seconds  = 60
  propagate_tags                     = "SERVICE"
  tags                               = var.tags

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.private_subnet_ids
    security_groups  = [aws_security_group.replica.id]
    assign_public_ip = false
  }

  load_balancer {
    target_group_arn = aws_lb_target_group.this.arn
    container_name   = "service"
    container_port   = local.port
  }

  lifecycle {
    ignore_changes = [desired_count] # the scaling below sets it
  }
}

resource "aws_appautoscaling_target" "replicas" {
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.this.name}/${aws_ecs_service.this.name}"
  min_capacity       = var.replicas.min
  max_capacity       = var.replicas.max
}

resource "aws_appautoscaling_policy" "cpu" {
  name               = "${local.name}-cpu"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.replicas.service_namespace
  scalable_dimension = aws_appautoscaling_target.replicas.scalable_dimension
  resource_id        = aws_appautoscaling_target.replicas.resource_id

  target_tracking_scaling_policy_configuration {
    target_value = 60

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}

resource "aws_lb" "this" {
  #checkov:skip=CKV2_AWS_28:a firewall is chosen with the domain in front of it; the API takes no secrets and bounds every request
  name                       = local.name
  load_balancer_type         = "application"
  subnets                    = var.public_subnet_ids
  security_groups            = [aws_security_group.balancer.id]
  drop_invalid_header_fields = true
  idle_timeout               = 60 # below the 75 s for which bec serve keeps an idle connection
  enable_deletion_protection = var.protected
  tags                       = var.tags
  #checkov:skip=CKV_AWS_150:set by the variable protected, true unless said otherwise

  access_logs {
    bucket  = var.log_bucket
    prefix  = "alb"
    enabled = true
  }
}

resource "aws_lb_target_group" "this" {
  #checkov:skip=CKV_AWS_378:the load balancer ends TLS; inside the network the replicas speak HTTP
  name                 = local.name
  vpc_id               = var.vpc_id
  target_type          = "ip"
  protocol             = "HTTP"
  port                 = local.port
  deregistration_delay = 15
  tags                 = var.tags

  health_check {
    path                = "/healthz"
    matcher             = "200"
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 3
  }
}

resource "aws_lb_listener" "https" {
  load_balancer_arn = aws_lb.this.arn
  protocol          = "HTTPS"
  port              = 443
  ssl_policy        = "ELBSecurityPolicy-TLS13-1-2-2021-06"
  certificate_arn   = var.certificate_arn
  tags              = var.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this.arn
  }
}

resource "aws_lb_listener" "http" {
  load_balancer_arn = aws_lb.this.arn
  protocol          = "HTTP"
  port              = 80
  tags              = var.tags

  default_action {
    type = "redirect"

    redirect {
      protocol    = "HTTPS"
      port        = "443"
      status_code = "HTTP_301"
    }
  }
}

resource "aws_security_group" "balancer" {
  name        = "${local.name}-balancer"
  description = "HTTP and HTTPS from anywhere, to the replicas alone."
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "balancer" {
  #checkov:skip=CKV_AWS_260:port 80 only redirects to HTTPS
  for_each = { http = 80, https = 443 }

  security_group_id = aws_security_group.balancer.id
  description       = "${upper(each.key)} from anywhere."
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value
  to_port           = each.value
}

resource "aws_vpc_security_group_egress_rule" "balancer" {
  security_group_id            = aws_security_group.balancer.id
  description                  = "To the replicas."
  referenced_security_group_id = aws_security_group.replica.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_security_group" "replica" {
  name        = "${local.name}-replica"
  description = "From the load balancer; out to S3 and AWS endpoints."
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "replica" {
  security_group_id            = aws_security_group.replica.id
  description                  = "From the load balancer."
  referenced_security_group_id = aws_security_group.balancer.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_egress_rule" "s3" {
  security_group_id = aws_security_group.replica.id
  description       = "HTTPS to S3."
  prefix_list_id    = var.s3_prefix_list_id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "endpoints" {
  security_group_id = aws_security_group.replica.id
  description       = "HTTPS to the endpoints inside the network."
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
