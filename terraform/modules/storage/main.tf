# The bucket of the cubes, and the one that takes its access logs.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = "6.25.0" }
  }
}

resource "aws_s3_bucket" "cubes" {
  #checkov:skip=CKV_AWS_144:a cube can be ingested again from its archive; a second region doubles the bill
  #checkov:skip=CKV2_AWS_62:nothing here acts on single objects
  #checkov:skip=CKV2_AWS_6:the block below is complete where reading = "private", and policies stay bounded elsewhere
  #checkov:skip=CKV_AWS_145:the key is chosen by kms_key_arn; a public cube cannot have one
  bucket = var.bucket
  tags   = var.tags
}

resource "aws_s3_bucket_ownership_controls" "cubes" {
  #checkov:skip=CKV2_AWS_65:BucketOwnerEnforced disables ACLs
  bucket = aws_s3_bucket.cubes.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "cubes" {
  #checkov:skip=CKV_AWS_54:opened by reading = "public" or "requester-pays" alone
  #checkov:skip=CKV_AWS_56:opened by reading = "public" or "requester-pays" alone
  bucket                  = aws_s3_bucket.cubes.id
  block_public_acls       = true
  ignore_public_acls      = true
  block_public_policy     = var.reading == "private"
  restrict_public_buckets = var.reading == "private"
}

resource "aws_s3_bucket_policy" "cubes" {
  bucket = aws_s3_bucket.cubes.id
  policy = var.bucket_policy

  # A policy that opens the bucket is refused while the block stands.
  depends_on = [aws_s3_bucket_public_access_block.cubes]
}

resource "aws_s3_bucket_versioning" "cubes" {
  bucket = aws_s3_bucket.cubes.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "cubes" {
  bucket = aws_s3_bucket.cubes.id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

# Releases share their shards, which are written once, so no release goes by its age: what goes is what a
# newer one replaced (the root document, a lock, a spill), once it was kept long enough to undo a mistake.
# Uploads in parts that were never finished cost, unseen; so do the marks that removed locks leave.
resource "aws_s3_bucket_lifecycle_configuration" "cubes" {
  bucket = aws_s3_bucket.cubes.id

  rule {
    id     = "old-versions-and-broken-uploads"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.keep_old_versions_days
    }

    expiration {
      expired_object_delete_marker = true
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  dynamic "rule" {
    for_each = var.archive_prefixes

    content {
      id     = "archive-${replace(rule.value, "/", "-")}"
      status = "Enabled"

      filter {
        prefix = "${rule.value}/"
      }

      transition {
        days          = 30
        storage_class = "GLACIER_IR"
      }

      abort_incomplete_multipart_upload {
        days_after_initiation = 7
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.cubes]
}

# Browsers read thumbnails' chunks and Zarr arrays by ranges.
resource "aws_s3_bucket_cors_configuration" "cubes" {
  bucket = aws_s3_bucket.cubes.id

  cors_rule {
    allowed_methods = ["GET", "HEAD"]
    allowed_origins = var.cors_origins
    allowed_headers = ["Range", "If-None-Match", "If-Match"]
    expose_headers  = ["Accept-Ranges", "Content-Range", "Content-Length", "ETag"]
    max_age_seconds = 3600
  }
}

resource "aws_s3_bucket_request_payment_configuration" "cubes" {
  bucket = aws_s3_bucket.cubes.id
  payer  = var.reading == "requester-pays" ? "Requester" : "BucketOwner"
}

resource "aws_s3_bucket_logging" "cubes" {
  bucket        = aws_s3_bucket.cubes.id
  target_bucket = aws_s3_bucket.logs.id
  target_prefix = "s3/"
}

resource "aws_s3_bucket" "logs" {
  #checkov:skip=CKV_AWS_144:logs are kept for a year in one place
  #checkov:skip=CKV2_AWS_62:nothing here acts on single objects
  #checkov:skip=CKV_AWS_145:log delivery writes with the keys of S3
  #checkov:skip=CKV_AWS_18:a log of the logs would log itself
  #checkov:skip=CKV_AWS_21:a log object is written once
  bucket = var.log_bucket
  tags   = var.tags
}

resource "aws_s3_bucket_ownership_controls" "logs" {
  #checkov:skip=CKV2_AWS_65:BucketOwnerEnforced disables ACLs
  bucket = aws_s3_bucket.logs.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "logs" {
  bucket                  = aws_s3_bucket.logs.id
  block_public_acls       = true
  ignore_public_acls      = true
  block_public_policy     = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "logs" {
  bucket = aws_s3_bucket.logs.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "logs" {
  bucket = aws_s3_bucket.logs.id

  rule {
    id     = "a-year"
    status = "Enabled"

    filter {}

    expiration {
      days = 365
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}

resource "aws_s3_bucket_policy" "logs" {
  bucket = aws_s3_bucket.logs.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "AccessLogsOfTheCubes"
        Effect    = "Allow"
        Principal = { Service = "logging.s3.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource  = "${aws_s3_bucket.logs.arn}/s3/*"
        Condition = { ArnLike = { "aws:SourceArn" = aws_s3_bucket.cubes.arn } }
      },
      {
        Sid       = "AccessLogsOfTheLoadBalancer"
        Effect    = "Allow"
        Principal = { Service = "logdelivery.elasticloadbalancing.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource  = "${aws_s3_bucket.logs.arn}/alb/*"
      },
      {
        Sid       = "RefusePlainHttp"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.logs.arn, "${aws_s3_bucket.logs.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}
