;; A validator that rejects the records whose payload begins with a letter of its settings:
;;   {"reject":"x"}  always
;;   {"opener":"x"}  only as the first record of a call, so that its verdicts depend on where chunks
;;                   begin, as those of a guest that counts records do
;; Settings come as canonical JSON, so that their third byte tells the two keys apart, and the twelfth is
;; the letter.

(global $opener (mut i32) (i32.const 0))    ;; 1 with the second key
(global $letter (mut i32) (i32.const -1))   ;; none without settings

(func (export "sluice:module/validate@0.1.0#init") (param $settings i32) (param $length i32) (result i32)
  (if (i32.gt_u (local.get $length) (i32.const 11))
    (then
      (global.set $opener (i32.eq (i32.load8_u offset=2 (local.get $settings)) (i32.const 111))) ;; o
      (global.set $letter (i32.load8_u offset=11 (local.get $settings)))))
  (i32.const 0))

(func (export "sluice:module/validate@0.1.0#validate") (param $arguments i32) (result i32)
  (local $position i32) (local $count i32) (local $index i32) (local $first i32) (local $next i32)
  (local.set $count (i32.load offset=140 (local.get $arguments)))
  (local.set $first (call $allocate (i32.const 4) (i32.mul (i32.const 32) (local.get $count))))
  (local.set $next (local.get $first))
  (block $done
    (loop $each
      (br_if $done (i32.eq (local.get $position) (local.get $count)))
      (local.set $index (call $selected (local.get $arguments) (local.get $position)))
      (if
        (i32.and
          (i32.eq (call $letter (local.get $arguments) (local.get $index)) (global.get $letter))
          (i32.or (i32.eqz (global.get $opener)) (i32.eqz (local.get $position))))
        (then
          (call $reject (local.get $next) (local.get $index)
            (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
          (local.set $next (i32.add (local.get $next) (i32.const 32)))))
      (local.set $position (i32.add (local.get $position) (i32.const 1)))
      (br $each)))
  (i32.store (i32.const 64) (local.get $first))
  (i32.store (i32.const 68)
    (i32.shr_u (i32.sub (local.get $next) (local.get $first)) (i32.const 5)))
  (i32.const 64))
