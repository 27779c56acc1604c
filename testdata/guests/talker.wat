;; A validator that accepts everything and logs what the first byte of each payload says:
;;   d i w e  a line at that level    n a line with control characters
;;   N a line that is not UTF-8    G a line of a megabyte    P a line outside its memory    l a level that is none
;;   F writes lines without an end
;; and the letters of $misbehave in prelude.wat. `init` logs, too.
;; It needs (import "sluice:module/log@0.1.0" "log" (func $log (param i32 i32 i32))), ahead of the prelude.

(data (i32.const 640) "one line")                        ;; 8
(data (i32.const 656) "two\nlines \1b[31m{\"level\":1}") ;; 26
(data (i32.const 688) "starting")                        ;; 8

(func (export "sluice:module/validate@0.1.0#init") (param i32 i32) (result i32)
  (call $log (i32.const 1) (i32.const 688) (i32.const 8))
  (i32.const 0))

(func $say (param $letter i32) (local $large i32)
  (if (i32.eq (local.get $letter) (i32.const 100)) ;; d
    (then (call $log (i32.const 0) (i32.const 640) (i32.const 8))))
  (if (i32.eq (local.get $letter) (i32.const 105)) ;; i
    (then (call $log (i32.const 1) (i32.const 640) (i32.const 8))))
  (if (i32.eq (local.get $letter) (i32.const 119)) ;; w
    (then (call $log (i32.const 2) (i32.const 640) (i32.const 8))))
  (if (i32.eq (local.get $letter) (i32.const 101)) ;; e
    (then (call $log (i32.const 3) (i32.const 640) (i32.const 8))))
  (if (i32.eq (local.get $letter) (i32.const 110)) ;; n
    (then (call $log (i32.const 1) (i32.const 656) (i32.const 26))))
  (if (i32.eq (local.get $letter) (i32.const 78)) ;; N
    (then (call $log (i32.const 1) (i32.const 320) (i32.const 3))))
  (if (i32.eq (local.get $letter) (i32.const 71)) ;; G
    (then
      (local.set $large (call $allocate (i32.const 1) (i32.const 1048576)))
      (memory.fill (local.get $large) (i32.const 120) (i32.const 1048576))
      (call $log (i32.const 1) (local.get $large) (i32.const 1048576))))
  (if (i32.eq (local.get $letter) (i32.const 80)) ;; P
    (then (call $log (i32.const 1) (i32.const 0x7fffff00) (i32.const 8))))
  (if (i32.eq (local.get $letter) (i32.const 108)) ;; l
    (then (call $log (i32.const 9) (i32.const 640) (i32.const 8))))
  (if (i32.eq (local.get $letter) (i32.const 70)) ;; F
    (then (loop $more (call $log (i32.const 1) (i32.const 640) (i32.const 8)) (br $more))))
  (call $misbehave (local.get $letter)))

(func (export "sluice:module/validate@0.1.0#validate") (param $arguments i32) (result i32)
  (local $position i32)
  (block $done
    (loop $each
      (br_if $done (i32.eq (local.get $position) (i32.load offset=140 (local.get $arguments))))
      (call $say
        (call $letter (local.get $arguments)
          (call $selected (local.get $arguments) (local.get $position))))
      (local.set $position (i32.add (local.get $position) (i32.const 1)))
      (br $each)))
  (i32.store (i32.const 64) (i32.const 0))
  (i32.store (i32.const 68) (i32.const 0))
  (i32.const 64))
