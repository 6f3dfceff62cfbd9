# Who is told, of what: a dashboard, alarms of the service, and the bill before it is due.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

locals {
  balanced = "AWS/ApplicationELB"
  of_service = flatten([for service in var.service[*] : [
    { title = "Requests and errors", metrics = [for name in ["RequestCount", "HTTPCode_Target_4XX_Count", "HTTPCode_Target_5XX_Count"] : [local.balanced, name, "LoadBalancer", service.load_balancer]], stat = "Sum" },
    { title = "Response time", metrics = [[local.balanced, "TargetResponseTime", "LoadBalancer", service.load_balancer]], stat = "p95" },
    { title = "Replicas", metrics = [[local.balanced, "HealthyHostCount", "TargetGroup", service.target_group, "LoadBalancer", service.load_balancer]], stat = "Minimum" },
  ]])
  of_dask = [
    { title = "Dask workers", metrics = [["ECS/ContainerInsights", "RunningTaskCount", "ServiceName", "worker", "ClusterName", var.dask_cluster]], stat = "Average" },
  ]
}

resource "aws_sns_topic" "alarms" {
  #checkov:skip=CKV_AWS_26:an alarm tells no secret, and CloudWatch may not use the key that AWS manages for topics
  name = "${var.prefix}-alarms"
  tags = var.tags
}

resource "aws_sns_topic_subscription" "mail" {
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.mail
}

resource "aws_budgets_budget" "month" {
  name         = "${var.prefix}-month"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_unit   = "USD"
  limit_amount = tostring(var.budget_usd)
  tags         = var.tags

  cost_filter {
    name   = "TagKeyValue"
    values = [format("user:Project$%s", var.project)]
  }

  dynamic "notification" {
    for_each = { half = ["ACTUAL", 50], most = ["ACTUAL", 90], forecast = ["FORECASTED", 100] }

    content {
      notification_type          = notification.value[0]
      threshold                  = notification.value[1]
      threshold_type             = "PERCENTAGE"
      comparison_operator        = "GREATER_THAN"
      subscriber_email_addresses = [var.mail]
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "errors" {
  count = var.service == null ? 0 : 1

  alarm_name          = "${var.prefix}-service-errors"
  alarm_description   = "The service answered with 5xx more than 5 times in 5 minutes."
  namespace           = "AWS/ApplicationELB"
  metric_name         = "HTTPCode_Target_5XX_Count"
  dimensions          = { LoadBalancer = var.service.load_balancer }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  threshold           = 5
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "replicas" {
  count = var.service == null ? 0 : 1

  alarm_name          = "${var.prefix}-service-down"
  alarm_description   = "No replica of the service is healthy."
  namespace           = "AWS/ApplicationELB"
  metric_name         = "HealthyHostCount"
  dimensions          = { LoadBalancer = var.service.load_balancer, TargetGroup = var.service.target_group }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 2
  threshold           = 1
  comparison_operator = "LessThanThreshold"
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tags
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.prefix
  dashboard_body = jsonencode({
    widgets = [
      for index, widget in concat(local.of_service, local.of_dask) : {
        type   = "metric"
        x      = 12 * (index % 2)
        y      = 6 * floor(index / 2)
        width  = 12
        height = 6
        properties = {
          title   = widget.title
          metrics = widget.metrics
          stat    = widget.stat
          period  = 60
          region  = var.region
        }
      }
    ]
  })
}
