# Roles that hold the policies: for tasks, for GPU jobs, and for workflows that publish.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

resource "aws_iam_policy" "role" {
  for_each = var.policies

  name        = "${var.prefix}-${each.key}"
  description = "What a ${each.key} of the cubes may do."
  policy      = each.value
  tags        = var.tags
}

resource "aws_iam_role" "task" {
  for_each = var.policies

  name               = "${var.prefix}-${each.key}"
  assume_role_policy = var.service_trust["ecs-tasks"]
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "task" {
  for_each = var.policies

  role       = aws_iam_role.task[each.key].name
  policy_arn = aws_iam_policy.role[each.key].arn
}

# What the platform needs to start a task: pull its image, write its log.
resource "aws_iam_role" "execution" {
  name               = "${var.prefix}-execution"
  assume_role_policy = var.service_trust["ecs-tasks"]
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "execution" {
  role       = aws_iam_role.execution.name
  policy_arn = "arn:${var.partition}:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
}

# Machines of the GPU queue join its cluster.
resource "aws_iam_role" "instance" {
  name               = "${var.prefix}-instance"
  assume_role_policy = var.service_trust["ec2"]
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "instance" {
  role       = aws_iam_role.instance.name
  policy_arn = "arn:${var.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "instance" {
  name = "${var.prefix}-instance"
  role = aws_iam_role.instance.name
  tags = var.tags
}

resource "aws_iam_openid_connect_provider" "github" {
  count = var.github_repository == null || !var.create_github_provider ? 0 : 1

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
  tags           = var.tags
}

resource "aws_iam_role" "github" {
  count = var.github_repository == null ? 0 : 1

  name               = "${var.prefix}-github"
  assume_role_policy = var.github_trust
  tags               = var.tags

  depends_on = [aws_iam_openid_connect_provider.github]
}

resource "aws_iam_role_policy_attachment" "github" {
  count = var.github_repository == null ? 0 : 1

  role       = aws_iam_role.github[0].name
  policy_arn = aws_iam_policy.role["publisher"].arn
}
