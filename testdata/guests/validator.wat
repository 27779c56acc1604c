;; A validator that does what the first byte of each payload says; anything else is accepted.
;;   r rejects    m rejects as malformed
;;   X rejects a record that does not exist    D rejects twice    N gives a reason that is not UTF-8
;;   A answers 64 rejections whose reasons are the same megabyte    P answers a list outside its memory
;;   g rejects with a reason of a megabyte    U rejects with a code that is empty and a field that is all control characters
;;   c rejects, but only if this instance was called before
;; and the letters of $misbehave in prelude.wat.

(global $calls (mut i32) (i32.const 0))

(func (export "sluice:module/validate@0.1.0#init") (param i32 i32) (result i32)
  (i32.const 0))

(func (export "sluice:module/validate@0.1.0#validate") (param $arguments i32) (result i32)
  (local $position i32) (local $count i32) (local $index i32) (local $letter i32)
  (local $first i32) (local $next i32) (local $lie i32) (local $again i32)
  (local.set $count (i32.load offset=140 (local.get $arguments)))
  (local.set $first
    (call $allocate (i32.const 4)
      (i32.add (i32.const 4096) (i32.mul (i32.const 64) (local.get $count)))))
  (local.set $next (local.get $first))
  (block $done
    (loop $each
      (br_if $done (i32.eq (local.get $position) (local.get $count)))
      (local.set $index (call $selected (local.get $arguments) (local.get $position)))
      (local.set $letter (call $letter (local.get $arguments) (local.get $index)))
      (call $misbehave (local.get $letter))

      (if (i32.eq (local.get $letter) (i32.const 114)) ;; r
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
          (i32.store offset=12 (local.get $next) (i32.const 1))
          (i32.store offset=16 (local.get $next) (i32.const 312))
          (i32.store offset=20 (local.get $next) (i32.const 3))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (if (i32.eq (local.get $letter) (i32.const 109)) ;; m
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 272) (i32.const 9) (i32.const 288) (i32.const 17))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (if (i32.eq (local.get $letter) (i32.const 88)) ;; X
        (then
          (call $reject (local.get $next) (i32.add (local.get $index) (i32.const 100000))
            (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (if (i32.eq (local.get $letter) (i32.const 68)) ;; D
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
          (call $reject (i32.add (local.get $next) (i32.const 32)) (local.get $index)
            (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
          (local.set $next (i32.add (local.get $next) (i32.const 64)))))
      (if (i32.eq (local.get $letter) (i32.const 78)) ;; N
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 9) (i32.const 320) (i32.const 3))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (if (i32.eq (local.get $letter) (i32.const 65)) ;; A
        (then
          (local.set $lie (call $allocate (i32.const 1) (i32.const 1048576)))
          (local.set $again (i32.const 64))
          (loop $more
            (call $reject (local.get $next) (local.get $index)
              (i32.const 256) (i32.const 9) (local.get $lie) (i32.const 1048576))
            (local.set $next (i32.add (local.get $next) (i32.const 32)))
            (local.set $again (i32.sub (local.get $again) (i32.const 1)))
            (br_if $more (local.get $again)))))
      (if (i32.eq (local.get $letter) (i32.const 103)) ;; g
        (then
          (local.set $lie (call $allocate (i32.const 1) (i32.const 1048576)))
          (memory.fill (local.get $lie) (i32.const 120) (i32.const 1048576))
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 9) (local.get $lie) (i32.const 1048576))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (if (i32.eq (local.get $letter) (i32.const 85)) ;; U
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 0) (i32.const 320) (i32.const 0))
          (i32.store offset=12 (local.get $next) (i32.const 1))
          (i32.store offset=16 (local.get $next) (i32.const 324))
          (i32.store offset=20 (local.get $next) (i32.const 3))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (if (i32.eq (local.get $letter) (i32.const 80)) ;; P
        (then (local.set $next (i32.add (local.get $first) (i32.const 0x20000000)))))
      (if (i32.and (i32.eq (local.get $letter) (i32.const 99)) ;; c
            (i32.ne (global.get $calls) (i32.const 0)))
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))

      (local.set $position (i32.add (local.get $position) (i32.const 1)))
      (br $each)))
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (i32.store (i32.const 64) (local.get $first))
  (i32.store (i32.const 68)
    (i32.shr_u (i32.sub (local.get $next) (local.get $first)) (i32.const 5)))
  (i32.const 64))
