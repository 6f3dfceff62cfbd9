# Who may do what, as policy documents: plain JSON, so that they can be tested without an account.
#
# A cube is written under a lock at `<cube>/ingest/lock.json`; whoever writes may remove what is below
# `<cube>/ingest/` (the lock, spills, accounts of unfinished shards) and nothing else. Shards and
# tables of a published release are never removed by these roles.

terraform {
  required_version = ">= 1.9"
}

locals {
  bucket = "arn:${var.partition}:s3:::${var.bucket}"

  list = {
    Sid      = "ListTheBucket"
    Effect   = "Allow"
    Action   = ["s3:ListBucket", "s3:GetBucketLocation"]
    Resource = local.bucket
  }

  read = {
    Sid      = "ReadObjects"
    Effect   = "Allow"
    Action   = "s3:GetObject"
    Resource = "${local.bucket}/*"
  }

  # What answers the public has no business with runs and archives.
  read_cubes = {
    Sid      = "ReadCubes"
    Effect   = "Allow"
    Action   = "s3:GetObject"
    Resource = [for prefix in var.cube_prefixes : "${local.bucket}/${prefix}/*"]
  }

  write_cubes = {
    Sid      = "WriteCubes"
    Effect   = "Allow"
    Action   = ["s3:PutObject", "s3:AbortMultipartUpload"]
    Resource = [for prefix in var.cube_prefixes : "${local.bucket}/${prefix}/*"]
  }

  clean_up = {
    Sid      = "RemoveTheLockAndWhatARunLeft"
    Effect   = "Allow"
    Action   = "s3:DeleteObject"
    Resource = [for prefix in var.cube_prefixes : "${local.bucket}/${prefix}/ingest/*"]
  }

  write_runs = {
    Sid      = "WriteRuns"
    Effect   = "Allow"
    Action   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    Resource = "${local.bucket}/${var.runs_prefix}/*"
  }

  # What a trainer adds to a cube: embeddings and predictions, and the root document that names them.
  write_embeddings = {
    Sid    = "WriteEmbeddings"
    Effect = "Allow"
    Action = "s3:PutObject"
    Resource = flatten([
      for prefix in var.cube_prefixes : [
        "${local.bucket}/${prefix}/cube.zarr/zarr.json",
        "${local.bucket}/${prefix}/cube.zarr/embeddings/*",
        "${local.bucket}/${prefix}/cube.zarr/predictions/*",
        "${local.bucket}/${prefix}/embeddings/*",
        "${local.bucket}/${prefix}/ingest/*",
      ]
    ])
  }

  key_read = var.kms_key_arn == null ? [] : [{
    Sid      = "Decrypt"
    Effect   = "Allow"
    Action   = "kms:Decrypt"
    Resource = var.kms_key_arn
  }]
  key_write = var.kms_key_arn == null ? [] : [{
    Sid      = "Encrypt"
    Effect   = "Allow"
    Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource = var.kms_key_arn
  }]

  statements = {
    reader    = concat([local.list, local.read_cubes], local.key_read)
    publisher = concat([local.list, local.read, local.write_cubes, local.clean_up], local.key_write)
    trainer = concat(
      [local.list, local.read, local.write_runs, local.write_embeddings, local.clean_up],
      local.key_write,
    )
  }

  only_tls = {
    Sid       = "RefusePlainHttp"
    Effect    = "Deny"
    Principal = "*"
    Action    = "s3:*"
    Resource  = [local.bucket, "${local.bucket}/*"]
    Condition = { Bool = { "aws:SecureTransport" = "false" } }
  }

  # Anonymous readers see cubes, never runs.
  anyone = [for action, resources in {
    "s3:ListBucket" = [local.bucket]
    "s3:GetObject"  = [for prefix in var.cube_prefixes : "${local.bucket}/${prefix}/*"]
    } : {
    Sid       = action == "s3:GetObject" ? "AnyoneReadsCubes" : "AnyoneListsCubes"
    Effect    = "Allow"
    Principal = "*"
    Action    = action
    Resource  = resources
    Condition = action == "s3:GetObject" ? {} : { StringLike = { "s3:prefix" = [for prefix in var.cube_prefixes : "${prefix}/*"] } }
  }]

  # The bucket itself refuses whoever does not say that they pay, and anonymous requests with them.
  payers = [{
    Sid       = "AccountsThatPayReadCubes"
    Effect    = "Allow"
    Principal = { AWS = "*" }
    Action    = "s3:GetObject"
    Resource  = [for prefix in var.cube_prefixes : "${local.bucket}/${prefix}/*"]
  }]

  readers = {
    private        = []
    public         = [for s in local.anyone : { for k, v in s : k => v if !(k == "Condition" && length(v) == 0) }]
    requester-pays = local.payers
  }
}
