run "a_thread_of_a_worker_has_room_for_its_shard" {
  command = plan

  assert {
    condition     = output.worker.memory_mib / output.worker.threads >= 2048
    error_message = "a thread has ${output.worker.memory_mib / output.worker.threads} MiB"
  }
}

run "a_replica_for_one_archive_is_small" {
  command = plan

  assert {
    condition     = output.replica.cpu == 1024 && output.replica.memory_mib == 2048
    error_message = "one archive takes ${output.replica.memory_mib} MiB"
  }
}

run "a_replica_grows_with_its_items_and_stays_a_pair_that_fargate_takes" {
  command = plan

  variables {
    n_items = 20000000
  }

  assert {
    condition     = output.replica.memory_mib > 4096 && output.replica.memory_mib <= 16384 && output.replica.cpu == 2048
    error_message = "20 million items take ${output.replica.memory_mib} MiB, ${output.replica.cpu} CPU units"
  }
}

run "no_worker_is_refused" {
  command         = plan
  expect_failures = [var.n_workers]

  variables {
    n_workers = 0
  }
}

run "half_a_worker_is_refused" {
  command         = plan
  expect_failures = [var.n_workers]

  variables {
    n_workers = 1.5
  }
}

run "an_unknown_size_is_refused" {
  command         = plan
  expect_failures = [var.worker_size]

  variables {
    worker_size = "huge"
  }
}

run "more_items_than_a_replica_holds_are_refused" {
  command         = plan
  expect_failures = [var.n_items]

  variables {
    n_items = 100000000
  }
}

run "a_machine_without_a_gpu_is_refused" {
  command         = plan
  expect_failures = [var.trainer]

  variables {
    trainer = "m7i.large"
  }
}
