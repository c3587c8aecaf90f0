"""What a user holds, and what user code may import inside an image: functions, executors, jobs, options."""
