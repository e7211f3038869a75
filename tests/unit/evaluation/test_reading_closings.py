"""Sentences as models close their answers with, a line each, by what they are to be read as."""

from __future__ import annotations

import pytest

from tests.unit.evaluation.test_reading_turns_of_phrase import CARE
from ultramed_rl.evaluation.reading.choice import read_choice

READ = {
    "A": """
In summary, A.
Only A applies to children.
So A it is.
The patient is in group B. The answer is A.
""",
    "B": """
The answer would be D if there were pain; here it is B.
Is the answer D? No. The answer is B.
Could it be D? Perhaps, but the answer is B.
Some say the answer is D. I disagree: the answer is B.
The incorrect statement is B.
A, C and D are true; B is the exception.
B is false, so the answer is B.
Statement B is false; the others are true. Answer: B.
Oral zinc is the best choice.
Oral zinc would be the correct answer.
Not D. The answer is B.
The answer is B, as D is wrong.
The answer is B as opposed to D.
The answer is B instead of D.
The answer is B (not D).
The answer is B, with D being a close second.
Answer: B (D is tempting but wrong).
Topical steroid would be the correct answer if the skin were inflamed. The answer is B.
If inflamed, C would be correct. The answer is B.
The answer isn't D but rather B.
It isn't D, it's B.
La respuesta no es A sino B.
Die Antwort ist nicht A, sondern B.
I lean towards B, yet D cannot be excluded.
The correct one: B
One that could be considered is D. The answer is B.
The answer appears to be D, but it's B.
It should be D. No, wait, it should be B.
D would be wrong. So it should be B.
The answer would be B because zinc helps.
C is to be avoided; B is best.
The answer is Oral Zinc!
the answer is 'oral zinc'
Answer: **oral zinc**.
Grade C evidence. The answer is B.
""",
    "C": """
The patient has hepatitis B. The answer is C.
EXCEPT question. All are true except C.
All of the statements are correct except for (C).
The answer is (C). (C) is correct because (B) is wrong.
The right one for him is C.
""",
    "D": """
I'm confident that it's D.
My final answer: D, upward rotation
Answer = D
ANSWER: d
The answer is option (D), since the scapula rotates upward.
So the answer is D rather than B.
So the answer is D, not B.
The answer isn't B but D.
The answer is not B; it is D.
Not A, not B, not C, so D.
A, B and C are incorrect, so the answer is D.
By process of elimination, D.
By elimination, we're left with D.
The answer should be D (Upward rotation).
The answer ought to be D.
At first I thought B, but the answer is D.
The answer is B. Wait, no. The answer is D.
The answer is B... actually it's D.
The answer is B. Correction: D.
The answer is B. Hmm, that is wrong. It should be D.
I choose D over C.
I'd go with D here.
I'd lean toward D.
Let's go with (D).
D seems best, so D.
The most appropriate option is D.
Thus option D fits best.
**Answer:** **D**
**Final answer: D) Upward rotation**
<answer>D</answer>
answer_idx: D
(d)
d. upward rotation
Option D: Upward rotation.
Choice D is correct because the others are not.
Among the choices, only D explains the finding.
Only option D is consistent with this.
La respuesta correcta es la D.
La respuesta es: D
Die richtige Antwort ist D.
La bonne réponse est D.
La réponse n'est pas B mais D.
The correct choice would appear to be D.
The answer, as discussed above, must be (D).
I would say D.
My answer remains D.
I stand by D.
The answer to this question is D.
The right one is D.
The one that fits is D.
The answer is likely D but could be B.
Final Answer: The final answer is D. I hope it is correct.
Hence, (D).
In conclusion, D.
In summary, option D.
So D it is.
Definitely D.
The answer is D. D. D.
The answer is D!!!
The answer is 'D'.
The answer is “D”.
The answer is 「D」
答案是D。
故选D
B would be correct, but the answer is D.
D must be correct.
D should be the right choice.
D appears to be correct.
D seems to be the best answer.
Only D explains the pain.
Leaning towards B, but the answer is D.
The only correct one is D.
The answer would seem to be D.
That should be D.
Answer (D).
Ans: D
Answer- D
Answer – D
Answer → D
The answer is D ✅
✅ D. Upward rotation
I think the answer is D, but I also considered B.
Initially I chose B; on reflection I choose D.
The answer is B only if he is a child. He is an adult, so the answer is D.
The answer is D. This is because B is wrong, C is wrong and A is wrong.
B is not the answer. C is not the answer. D is the answer. A is not the answer.
The answer is D. The answer is not B.
The answer is neither A nor B but D.
The answer is D, not because of pain but because of rotation.
The answer is D. Upward rotation is the correct movement.
Answer: D. Upward rotation. Explanation: B. Oral zinc is used for diarrhoea.
""",
    "contradiction": """
I would say A. Or B.
The answer is A. Or B.
The answer is (A). Or (B)?
The answer is B or D.
The answer is both B and D.
""",
    "none": """
The correct answer is not listed.
None of these options is correct.
I cannot determine the answer from the data.
Option A is wrong. Option B is wrong. Option C is wrong.
Oral zinc is not the correct answer.
The answer remains unclear.
I wouldn't say D.
I'd say neither.
I would never say D.
The right one isn't D.
The right one depends on the case.
In conclusion, D is not supported.
In summary, A patient like this needs rest.
Topical steroid would not be the correct answer.
D seems to be wrong.
D might be correct.
D may be the best answer.
The answer does not appear to be D.
The answer is zinc.
Upward rotation is incorrect.
Not only D explains the pain.
""",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(text, expected) for expected, lines in READ.items() for text in lines.strip().splitlines()],
)
def test_closing_sentences(text: str, expected: str) -> None:
    reading = read_choice(text, CARE)
    assert (reading.given or (reading.problem,)) == (expected,)
